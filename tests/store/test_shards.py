import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from schemas.errors import NotFoundError, UnitError
from tasks.store.arrays import ShardWriter, create_capture
from tasks.store.location import Location, digest_of
from tasks.store.paths import capture_path
from tests.store.helpers import PROVENANCE, full_values, make_samples, make_spec, plans

SITE = "sites/encoder.layer.0@out@0/activation"


@pytest.fixture
def created(root: Location) -> Location:
    spec = make_spec()
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    return root


def test_digest_is_of_the_bytes_stored(any_root: Location) -> None:
    spec = make_spec()
    create_capture(any_root, spec, make_samples(spec), PROVENANCE)
    writer = ShardWriter(any_root, spec, spec.id)
    for plan in plans(spec):
        for shard in range(plan.space.n_shards):
            first, last = plan.space.shard_bounds(shard)
            path, digest = writer.write(plan.path, shard, full_values(plan)[first:last])
            assert digest == digest_of(any_root.read(f"{capture_path(spec.id)}/{path}"))


def test_equal_rows_give_equal_bytes(created: Location) -> None:
    spec = make_spec()
    block = np.arange(48, dtype=np.float32).reshape(8, 6)
    assert ShardWriter(created, spec, spec.id).write(SITE, 1, block) == ShardWriter(
        created, spec, spec.id
    ).write(SITE, 1, block)


@pytest.mark.parametrize("garbage", [b"", b"half a shard", bytes(2000)])
@pytest.mark.parametrize("shard", [0, 3])
def test_a_damaged_shard_is_replaced_not_merged(created: Location, garbage: bytes, shard: int) -> None:
    """Also the short last shard."""
    spec = make_spec()
    first, last = spec.layout.space("tokens").shard_bounds(shard)
    block = np.ones((last - first, 6), dtype=np.float32)
    path, clean = ShardWriter(created, spec, spec.id).write(SITE, shard, block)
    created.write(f"{capture_path(spec.id)}/{path}", garbage)
    assert ShardWriter(created, spec, spec.id).write(SITE, shard, block) == (path, clean)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_shards_of_fill_values_are_written(created: Location, value: float) -> None:
    spec = make_spec()
    path, digest = ShardWriter(created, spec, spec.id).write(
        SITE, 0, np.full((8, 6), value, dtype=np.float32)
    )
    assert created.size(f"{capture_path(spec.id)}/{path}") == digest.bytes > 0


def test_threads_write_different_shards(created: Location) -> None:
    spec = make_spec()
    writer = ShardWriter(created, spec, spec.id)
    jobs = [(plan, shard) for plan in plans(spec) for shard in range(plan.space.n_shards)]

    def work(job):
        plan, shard = job
        first, last = plan.space.shard_bounds(shard)
        return writer.write(plan.path, shard, full_values(plan)[first:last])

    with ThreadPoolExecutor(4) as pool:
        written = dict(pool.map(work, jobs))
    assert len(written) == len(jobs)
    for path, digest in written.items():
        assert digest_of(created.read(f"{capture_path(spec.id)}/{path}")) == digest
    group = zarr.open_group(f"{created.url}/{capture_path(spec.id)}", mode="r")
    for plan in plans(spec):
        np.testing.assert_array_equal(group[plan.path][...], full_values(plan))


@pytest.mark.parametrize(
    ("path", "shard", "block", "message"),
    [
        (SITE, 0, np.zeros((7, 6), np.float32), r"takes shape \(8, 6\) of float32, was given \(7, 6\)"),
        (SITE, 3, np.zeros((8, 6), np.float32), r"takes shape \(1, 6\)"),
        (SITE, 0, np.zeros((8, 6), np.float64), "of float64"),
        (SITE, 4, np.zeros((8, 6), np.float32), "has shards 0 to 3, was asked to write 4"),
        (SITE, -1, np.zeros((8, 6), np.float32), "has shards 0 to 3"),
        (
            "sites/nope/activation",
            0,
            np.zeros((8, 6), np.float32),
            "no sharded array 'sites/nope/activation'",
        ),
        ("rows/tokens/position", 0, np.zeros(8, np.int64), "of int32, was given"),
    ],
)
def test_only_whole_shards(created: Location, path: str, shard: int, block: np.ndarray, message: str) -> None:
    spec = make_spec()
    before = created.walk()
    with pytest.raises(UnitError, match=message):
        ShardWriter(created, spec, spec.id).write(path, shard, block)
    assert created.walk() == before


WRITE = """
import sys
import numpy as np
from tests.store.helpers import make_spec
from tasks.store.arrays import ShardWriter
from tasks.store.location import Location
spec = make_spec(4096, width=256, chunk_rows=512, shard_rows=1024)
writer = ShardWriter(Location(sys.argv[1]), spec, spec.id)
print("ready", flush=True)
while True:
    for shard in range(4):
        writer.write(sys.argv[2], shard, np.full((1024, 256), shard + 1, np.float32))
"""


def test_a_killed_writer_leaves_whole_shards_or_none(root: Location) -> None:
    spec = make_spec(4096, width=256, chunk_rows=512, shard_rows=1024)
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    for pause in (0.0, 0.03, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, root.url, SITE], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(pause)
            process.kill()
    place = root.child(capture_path(spec.id))
    shards = [name for name in place.walk(f"{SITE}/c") if not name.endswith(".partial")]
    array = zarr.open_array(f"{place.url}/{SITE}", mode="r")
    for name in shards:
        shard = int(name.partition("/")[0])
        assert (array[shard * 1024 : (shard + 1) * 1024] == shard + 1).all()


def test_writing_needs_a_created_capture(root: Location) -> None:
    spec = make_spec()
    with pytest.raises(NotFoundError, match="create it before writing"):
        ShardWriter(root, spec, spec.id).write(SITE, 0, np.zeros((8, 6), np.float32))

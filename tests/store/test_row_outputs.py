import json
import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from schemas.errors import NotFoundError, StoreError, UnitError
from tasks.store.artifacts import (
    ArtifactWriter,
    RowArray,
    RowGrid,
    artifact_arrays,
    open_arrays,
    verify_artifact,
    write_artifact,
)
from tasks.store.location import Location
from tests.store.test_artifacts import make_artifact

GRID = RowGrid(n_rows=21, chunk_rows=4, shard_rows=8)
OUTPUTS = {"score": RowArray("float64"), "label": RowArray("int32"), "code": RowArray("float32", 3)}


def writer(root: Location, group: str = "", grid: RowGrid = GRID) -> ArtifactWriter:
    return ArtifactWriter(root, make_artifact().id, grid, OUTPUTS, group=group)


def blocks(shard: int, grid: RowGrid = GRID) -> dict[str, np.ndarray]:
    first, last = grid.bounds(shard)
    index = np.arange(first, last)
    code = np.stack([index, index * 2, index * 3], axis=1)
    return {"score": index / 7, "label": index.astype(np.int32), "code": code.astype(np.float32)}


def write_shard(job: tuple[ArtifactWriter, int]) -> None:
    job[0].write(job[1], blocks(job[1]))


def test_shards_by_worker_processes(root: Location) -> None:
    own = writer(root)
    own.create()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(write_shard, [(own, shard) for shard in range(GRID.n_shards)])
    artifact = write_artifact(root, make_artifact(), {"mean": (np.zeros(3), ("component",))}, {}, rows=[own])
    assert verify_artifact(root, artifact.id) == []
    found = artifact_arrays(root, artifact.id)
    np.testing.assert_array_equal(found["score"], np.arange(21) / 7)
    np.testing.assert_array_equal(found["code"][:, 2], np.arange(21) * 3)
    assert found["label"].dtype == np.int32
    assert artifact.arrays["code"].dims == ("row", "component")
    assert artifact.arrays["code"].shape == (21, 3)
    data = xr.open_zarr(f"{root.url}/artifacts/{artifact.id}/arrays.zarr", consolidated=False)
    np.testing.assert_array_equal(data["label"].values, np.arange(21))


def test_resume_writes_only_what_is_missing(any_root: Location) -> None:
    own = writer(any_root)
    own.create()
    own.write(1, blocks(1))
    again = pickle.loads(pickle.dumps(own))
    again.create()
    assert [again.done(shard) for shard in range(GRID.n_shards)] == [False, True, False]
    with pytest.raises(StoreError, match=r"lacks 2 of 3 shards of score, label, code \(first: 0\)"):
        write_artifact(any_root, make_artifact(), {}, {}, rows=[again])
    before = any_root.read(f"artifacts/{own.artifact}/arrays.zarr/score/c/1")
    for shard in (0, 2):
        again.write(shard, blocks(shard))
    artifact = write_artifact(any_root, make_artifact(), {}, {}, rows=[again])
    assert any_root.read(f"artifacts/{own.artifact}/arrays.zarr/score/c/1") == before
    np.testing.assert_array_equal(open_arrays(any_root, artifact.id)["score"][...], np.arange(21) / 7)


def test_a_corrupt_receipt_is_ignored(root: Location) -> None:
    own = writer(root)
    own.create()
    own.write(0, blocks(0))
    path = f"artifacts/{own.artifact}.receipts/rows-000000.json"
    data = bytearray(root.read(path))
    data[len(data) // 2] ^= 1
    root.write(path, bytes(data))
    assert not own.done(0)
    own.write(0, blocks(0))
    assert own.done(0)


def test_groups_of_several_captures(root: Location) -> None:
    """Row counts differ between captures: each has its own group, and xarray opens each."""
    grids = {"aaa": GRID, "bbb": RowGrid(n_rows=5, chunk_rows=2, shard_rows=4)}
    writers = [writer(root, group, grid) for group, grid in grids.items()]
    for own in writers:
        own.create()
        for shard in range(own.grid.n_shards):
            own.write(shard, blocks(shard, own.grid))
    artifact = write_artifact(root, make_artifact(), {}, {}, rows=writers)
    assert verify_artifact(root, artifact.id) == []
    for group, grid in grids.items():
        data = xr.open_zarr(
            f"{root.url}/artifacts/{artifact.id}/arrays.zarr", group=group, consolidated=False
        )
        np.testing.assert_array_equal(data["label"].values, np.arange(grid.n_rows))


def test_a_shard_that_changed_after_its_receipt_is_found(root: Location) -> None:
    own = writer(root)
    own.create()
    for shard in range(GRID.n_shards):
        own.write(shard, blocks(shard))
    path = f"artifacts/{own.artifact}/arrays.zarr/code/c/1/0"
    data = bytearray(root.read(path))
    data[4] ^= 1
    root.write(path, bytes(data))
    artifact = write_artifact(root, make_artifact(), {}, {}, rows=[own])
    assert [damage.path for damage in verify_artifact(root, artifact.id)] == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": np.zeros(7)}, r"takes shape \(8,\) of float64, was given \(7,\)"),
        ({"label": np.zeros(8, dtype=np.int64)}, "of int32, was given .* of int64"),
        ({"code": np.zeros((8, 2), dtype=np.float32)}, r"takes shape \(8, 3\)"),
    ],
)
def test_only_whole_shards(root: Location, changes: dict[str, np.ndarray], message: str) -> None:
    own = writer(root)
    own.create()
    with pytest.raises(UnitError, match=message):
        own.write(0, {**blocks(0), **changes})
    assert not own.done(0)


def test_all_outputs_are_needed(root: Location) -> None:
    own = writer(root)
    own.create()
    with pytest.raises(UnitError, match="output 'label'"):
        own.write(0, {"score": blocks(0)["score"]})


def test_create_comes_first(root: Location) -> None:
    with pytest.raises(NotFoundError, match="create it before writing"):
        writer(root).write(0, blocks(0))


def test_codes_lie_column_by_column_and_open_without_the_project(root: Location) -> None:
    """An output may name its codec; the others keep theirs."""
    outputs = {"score": RowArray("float64"), "code": RowArray("int8", 40, codec="codes")}
    own = ArtifactWriter(root, make_artifact().id, GRID, outputs)
    own.create()
    rng = np.random.default_rng(0)
    codes = np.rint(rng.standard_normal((21, 40)) * np.geomspace(30, 0.1, 40)).astype(np.int8)
    for shard in range(GRID.n_shards):
        first, last = GRID.bounds(shard)
        own.write(shard, {"score": np.arange(first, last) / 7, "code": codes[first:last]})
    artifact = write_artifact(root, make_artifact(), {}, {}, rows=[own])
    assert verify_artifact(root, artifact.id) == []
    np.testing.assert_array_equal(open_arrays(root, artifact.id)["code"][...], codes)
    place = f"{root.url}/artifacts/{artifact.id}/arrays.zarr"
    assert _codecs(root, artifact.id, "code") == ["transpose", "bytes", "zstd", "crc32c"]
    assert _codecs(root, artifact.id, "score") == ["bytes", "blosc", "crc32c"]
    reads = (
        "import sys, xarray, zarr\n"
        f"found = xarray.open_zarr({place!r}, consolidated=False)['code'].values\n"
        f"assert (found == zarr.open_group({place!r}, mode='r')['code'][:]).all()\n"
        "print(found.astype(int).tolist())\n"
        "assert not any(name.split('.')[0] in ('tasks', 'schemas', 'subspan') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", reads], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(json.loads(done.stdout), codes)


def _codecs(root: Location, artifact: str, name: str) -> list[str]:
    """Names of the codecs of a chunk."""
    metadata = json.loads(root.read(f"artifacts/{artifact}/arrays.zarr/{name}/zarr.json"))
    return [codec["name"] for codec in metadata["codecs"][0]["configuration"]["codecs"]]

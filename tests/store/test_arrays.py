import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.capture import CaptureSpec
from schemas.errors import DataError, OccupiedError
from tasks.store.arrays import ShardWriter, create_capture, read_samples
from tasks.store.codecs import codec_chain
from tasks.store.location import Location, digest_of
from tasks.store.paths import capture_path, created_path
from tasks.store.sealed import open_group
from tests.store.helpers import PROVENANCE, full_values, make_capture, make_samples, make_spec, plans


def test_what_lies_on_disk(root: Location) -> None:
    """A golden list of every path of a small capture, its receipts and manifest."""
    spec = make_spec(9, n_samples=2)
    make_capture(root, spec)
    found = [path.replace(spec.id, "ID") for path in sorted(root.walk())]
    site = "captures/ID.zarr/sites/encoder.layer.0@out@0"
    assert [path for path in found if path.startswith(site)] == [
        f"{site}/activation/c/0/0",
        f"{site}/activation/c/1/0",
        f"{site}/activation/zarr.json",
        f"{site}/zarr.json",
    ]
    assert [path for path in found if ".zarr/" not in path] == [
        "captures/ID.manifest.json",
        "captures/ID.receipts/created.json",
        "captures/ID.receipts/sample-000000.json",
        "captures/ID.receipts/tokens-000000.json",
    ]
    names = {path.removeprefix("captures/ID.zarr/").rpartition("/c/")[0] for path in found if "/c/" in path}
    assert names == {
        *(
            f"rows/{s}/{n}"
            for s in ("tokens", "sample")
            for n in ("sample", "position", "token_id", "norm", "outlier")
        ),
        *(f"samples/{n}" for n in ("key", "length", "ok", "truncated", "source_index")),
        *(f"samples/row_start/{s}" for s in ("tokens", "sample")),
        *(f"samples/labels/{n}" for n in ("kind", "size")),
        *(
            f"sites/{s}/activation"
            for s in ("encoder.layer.0@out@0", "encoder.layer.1@in@0@0", "pooler@out@0")
        ),
    }


def test_create_returns_the_digests_of_what_is_there(any_root: Location) -> None:
    spec = make_spec()
    digests = create_capture(any_root, spec, make_samples(spec), PROVENANCE)
    place = any_root.child(capture_path(spec.id))
    assert set(digests) == set(place.walk())
    assert all(digest_of(place.read(path)) == digest for path, digest in digests.items())


def test_create_twice_is_the_same(root: Location) -> None:
    spec = make_spec()
    first = create_capture(root, spec, make_samples(spec), PROVENANCE)
    again = create_capture(root, spec, make_samples(spec), {"git": "another"})
    assert again == first
    assert zarr.open_group(f"{root.url}/{capture_path(spec.id)}", mode="r").attrs["provenance"] == PROVENANCE


def test_create_mends_what_was_damaged(root: Location) -> None:
    spec = make_spec()
    first = create_capture(root, spec, make_samples(spec), PROVENANCE)
    place = root.child(capture_path(spec.id))
    place.delete("samples/key/c/0")
    place.write("samples/length/c/0", b"?" * first["samples/length/c/0"].bytes)
    root.delete(created_path(spec.id))
    assert create_capture(root, spec, make_samples(spec), PROVENANCE) == first
    assert {path: digest_of(place.read(path)) for path in place.walk()} == first


def test_create_leaves_a_sealed_capture_alone(root: Location) -> None:
    spec = make_spec()
    make_capture(root, spec)
    before = {path: root.read(path) for path in root.walk()}
    digests = create_capture(root, spec, make_samples(spec), {"git": "another"})
    assert {path: root.read(path) for path in root.walk()} == before
    assert digests["samples/key/zarr.json"] == digest_of(
        root.read(f"{capture_path(spec.id)}/samples/key/zarr.json")
    )
    assert not any(path.startswith("sites/") and "/c/" in path for path in digests)


@pytest.mark.parametrize("content", [b"{}", b"not json", b'{"attributes": {"spec": {"weights": "other"}}}'])
def test_a_foreign_zarr_is_refused(root: Location, content: bytes) -> None:
    spec = make_spec()
    root.write(f"{capture_path(spec.id)}/zarr.json", content)
    with pytest.raises(OccupiedError, match="move the folder away"):
        create_capture(root, spec, make_samples(spec), PROVENANCE)
    assert root.read(f"{capture_path(spec.id)}/zarr.json") == content


def test_a_foreign_folder_is_refused(root: Location) -> None:
    spec = make_spec()
    root.write(f"{capture_path(spec.id)}/thesis.txt", b"precious")
    with pytest.raises(OccupiedError, match=r"holds thesis\.txt"):
        create_capture(root, spec, make_samples(spec), PROVENANCE)


def test_leftovers_of_a_killed_create_are_no_hindrance(root: Location) -> None:
    spec = make_spec()
    root.write(f"{capture_path(spec.id)}/zarr.json.0a1b.partial", b"half")
    create_capture(root, spec, make_samples(spec), PROVENANCE)


def test_a_sample_table_that_does_not_fit(root: Location) -> None:
    spec = make_spec()
    samples = make_samples(spec)
    with pytest.raises(DataError, match=r"'lengths': 3\}, expected 5 samples"):
        create_capture(root, spec, samples._replace(lengths=samples.lengths[:3]), PROVENANCE)
    wrong = {**samples.row_start, "tokens": samples.row_start["tokens"] + 1}
    with pytest.raises(DataError, match=r"row_start of space 'tokens' .* from 0 to 25 in 6 steps"):
        create_capture(root, spec, samples._replace(row_start=wrong), PROVENANCE)
    assert root.walk() == {}


def test_samples_come_back(any_root: Location) -> None:
    spec = make_spec()
    samples = make_samples(spec)._replace(truncated=np.array([True, False, False, True, False]))
    create_capture(any_root, spec, samples, PROVENANCE)
    found = read_samples(any_root, spec.id)
    assert found.keys == samples.keys == ["größe/0", "größe/1", "größe/2", "größe/3", "größe/4"]
    assert found.categories == samples.categories
    assert found.labels["kind"].dtype == np.int64
    assert found.labels["size"].dtype == np.float64
    np.testing.assert_array_equal(found.labels["size"], samples.labels["size"])
    np.testing.assert_array_equal(found.row_start["tokens"], samples.row_start["tokens"])
    assert found.truncated is not None
    assert found.truncated.tolist() == [True, False, False, True, False]


def test_plain_xarray_opens_everything(root: Location) -> None:
    """With warnings as errors, from a path, without any of our code."""
    spec = make_spec()
    make_capture(root, spec)
    path = f"{root.url}/{capture_path(spec.id)}"
    for plan in plans(spec):
        group, _, name = plan.path.rpartition("/")
        array = xr.open_zarr(path, group=group, consolidated=False)[name]
        assert array.dims == plan.dims
        assert array.dtype == np.dtype(plan.dtype)
        np.testing.assert_array_equal(array.values, full_values(plan))
    samples = xr.open_zarr(path, group="samples", consolidated=False)
    assert samples["key"].values.tolist() == make_samples(spec).keys
    assert samples["ok"].values.all()
    labels = xr.open_zarr(path, group="samples/labels", consolidated=False)
    assert labels["kind"].attrs["categories"] == ["even", "odd"]
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    assert CaptureSpec.model_validate(tree.attrs["spec"]) == spec
    assert tree.attrs["schema_version"] == 1
    assert tree["sites/pooler@out@0"].attrs == {
        "site": "pooler:out:0",
        "module": "pooler",
        "width": 3,
        "space": "sample",
    }


def test_metadata_are_explicit(root: Location) -> None:
    """Fill values, names of axes, checksums: read from the JSON itself."""
    spec = make_spec()
    create_capture(root, spec, make_samples(spec), PROVENANCE)
    folder = root.child(capture_path(spec.id))
    for path in folder.walk():
        metadata = json.loads(folder.read(path)) if path.endswith("zarr.json") else {}
        if metadata.get("node_type") != "array":
            continue
        assert None not in metadata["dimension_names"]
        kind = metadata["data_type"]
        expected = {"bool": False, "string": ""}.get(kind, "NaN" if kind.startswith("float") else -1)
        assert metadata["fill_value"] == expected, path
        codec = metadata["codecs"][0]
        chain = (
            codec["configuration"]["codecs"] if codec["name"] == "sharding_indexed" else metadata["codecs"]
        )
        assert chain[-1]["name"] == "crc32c"
        if codec["name"] == "sharding_indexed":
            assert codec["configuration"]["index_codecs"][-1]["name"] == "crc32c"


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("bfloat16", 4), ("float16", 2), ("bool", 1), ("int64", 8)]
)
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_codec_chain(codec: str, dtype: str, size: int) -> None:
    names = [part.to_dict()["name"] for part in codec_chain(codec, dtype, 100)]
    assert names == (["bytes", "crc32c"] if codec == "none" else ["bytes", "blosc", "crc32c"])
    if codec != "none":
        configuration = codec_chain(codec, dtype, 100)[1].to_dict()["configuration"]
        assert configuration["cname"] == codec
        assert configuration["shuffle"] == "bitshuffle"
        assert configuration["typesize"] == size


def test_states_only_captures_have_no_rows(root: Location) -> None:
    spec = make_spec(keep="states")
    digests = create_capture(root, spec, make_samples(spec), PROVENANCE)
    assert not [path for path in digests if path.startswith(("sites/", "rows/"))]


def test_bfloat16_values_are_exact(root: Location) -> None:
    """float32 rounded to bfloat16 comes back bit for bit, in half the room of full precision."""
    rng = np.random.default_rng(0)
    full = rng.standard_normal((4096, 16)).astype(np.float32)
    rounded = (full.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    sizes = {}
    for name, block in {"rounded": rounded, "full": full}.items():
        spec = make_spec(4096, width=16, chunk_rows=1024, shard_rows=4096, dtype="bfloat16", name=f"m:{name}")
        create_capture(root, spec, make_samples(spec), PROVENANCE)
        _, digest = ShardWriter(root, spec, spec.id).write("sites/encoder.layer.0@out@0/activation", 0, block)
        sizes[name] = digest.bytes
        array = xr.open_zarr(
            f"{root.url}/{capture_path(spec.id)}", group="sites/encoder.layer.0@out@0", consolidated=False
        )["activation"]
        np.testing.assert_array_equal(array.values.view(np.uint32), block.view(np.uint32))
    assert sizes["rounded"] < 0.52 * sizes["full"]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 5),
    chunk=st.integers(1, 6),
    chunks_per_shard=st.integers(1, 4),
    unit_shards=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    codec=st.sampled_from(["none", "lz4", "zstd"]),
    n_samples=st.integers(0, 6),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    width: int,
    chunk: int,
    chunks_per_shard: int,
    unit_shards: int,
    dtype: str,
    codec: str,
    n_samples: int,
) -> None:
    """Any shape, shard and codec: every array comes back, by our store and by plain zarr."""
    if n_samples == 0:
        rows = 0
    root = Location(str(tmp_path_factory.mktemp("any")))
    spec = make_spec(
        rows,
        width=width,
        chunk_rows=chunk,
        shard_rows=chunk * chunks_per_shard,
        unit_shards=unit_shards,
        dtype=dtype,
        codec=codec,
        n_samples=n_samples,
    )
    make_capture(root, spec)
    sealed = open_group(root, spec.id)
    plain = zarr.open_group(f"{root.url}/{capture_path(spec.id)}", mode="r")
    for plan in plans(spec):
        for group in (sealed, plain):
            found = group[plan.path][...]
            assert found.dtype == np.dtype(plan.dtype)
            np.testing.assert_array_equal(found, full_values(plan))


def test_imports_no_torch() -> None:
    code = "import sys, tasks.store.arrays, tasks.store.artifacts, tasks.store.sealed, tasks.store.lease\n"
    code += "import tasks.store.states, tasks.store.row_outputs\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'prefect', 'dask', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from schemas.errors import DamageError, NotFoundError, StoreError
from tasks.store.location import Location
from tasks.store.paths import capture_path, manifest_path
from tasks.store.sealed import SealedStore, open_group
from tests.store.helpers import full_values, make_capture, make_spec, plans

ARRAY = "sites/encoder.layer.0@out@0/activation"


@pytest.fixture
def sealed(root: Location) -> Location:
    make_capture(root, make_spec())
    return root


def expected() -> np.ndarray:
    return next(full_values(plan) for plan in plans(make_spec()) if plan.path == ARRAY)


def injure(root: Location, path: str = f"{ARRAY}/c/1/0", position: int = 5) -> None:
    full = f"{capture_path(make_spec().id)}/{path}"
    data = bytearray(root.read(full))
    data[position] ^= 4
    root.write(full, bytes(data))


def test_everything_reads(any_root: Location) -> None:
    spec = make_spec()
    make_capture(any_root, spec)
    group = open_group(any_root, spec.id)
    for plan in plans(spec):
        np.testing.assert_array_equal(group[plan.path][...], full_values(plan))
        if plan.space.n_rows > 6:
            np.testing.assert_array_equal(group[plan.path][3:6], full_values(plan)[3:6])


@pytest.mark.parametrize("chunks", [{}, {"row": 8}, None])
def test_xarray_and_dask_read_it(sealed: Location, chunks: dict[str, int] | None) -> None:
    store = pickle.loads(pickle.dumps(SealedStore(sealed, make_spec().id)))
    data = xr.open_zarr(store, group="sites/encoder.layer.0@out@0", consolidated=False, chunks=chunks)
    assert data["activation"].dims == ("row", "feature")
    np.testing.assert_array_equal(data["activation"].values, expected())
    np.testing.assert_array_equal(data["activation"][7:11, ::2].values, expected()[7:11, ::2])


def test_dask_reads_whole_shards_in_processes(sealed: Location) -> None:
    store = SealedStore(sealed, make_spec().id)
    array = da.from_zarr(zarr.open_array(store, path=ARRAY, mode="r"), chunks=(8, 6))
    with dask.config.set(scheduler="processes", num_workers=1):
        np.testing.assert_array_equal(array.compute(), expected())
    assert dask.base.tokenize(store) == dask.base.tokenize(SealedStore(sealed, make_spec().id))


def test_damage_reaches_xarray_and_dask(sealed: Location) -> None:
    injure(sealed)
    data = xr.open_zarr(
        SealedStore(sealed, make_spec().id), group="sites/encoder.layer.0@out@0", consolidated=False
    )
    with pytest.raises(
        DamageError, match=r"capture \w+ is damaged: .*c/1/0 has bytes that changed \(crc32c\)"
    ):
        data["activation"].values  # noqa: B018
    np.testing.assert_array_equal(data["activation"][:8].values, expected()[:8])


@pytest.mark.parametrize("rows", [slice(None), slice(8, 16), slice(9, 10), slice(8, 12)])
def test_a_flip_is_seen_in_any_read_that_touches_it(sealed: Location, rows: slice) -> None:
    injure(sealed)
    with pytest.raises(DamageError, match=r"c/1/0 has bytes that changed"):
        open_group(sealed, make_spec().id)[ARRAY][rows]


@pytest.mark.parametrize("rows", [slice(None), slice(9, 10)])
@pytest.mark.parametrize("how", ["missing", "short", "long", "empty"])
def test_missing_and_cut_shards(sealed: Location, rows: slice, how: str) -> None:
    path = f"{capture_path(make_spec().id)}/{ARRAY}/c/1/0"
    data = sealed.read(path)
    group = open_group(sealed, make_spec().id)
    if how == "missing":
        sealed.delete(path)
    else:
        sealed.write(path, {"short": data[:-1], "long": data + b"x", "empty": b""}[how])
    with pytest.raises(DamageError, match=r"c/1/0 (is missing|has [\d,]+ bytes, sealed with)"):
        group[ARRAY][rows]


def test_a_shard_that_vanishes_while_it_is_read(sealed: Location) -> None:
    array = open_group(sealed, make_spec().id)[ARRAY]
    np.testing.assert_array_equal(array[8:16], expected()[8:16])
    sealed.delete(f"{capture_path(make_spec().id)}/{ARRAY}/c/1/0")
    with pytest.raises(DamageError, match="is missing"):
        array[8:16]


@pytest.mark.parametrize("path", ["zarr.json", f"{ARRAY}/zarr.json", "samples/key/zarr.json"])
def test_changed_metadata(sealed: Location, path: str) -> None:
    injure(sealed, path, position=30)
    with pytest.raises(DamageError, match=f"{path} changed"):
        open_group(sealed, make_spec().id)[path.rpartition("/")[0] or ARRAY]


@pytest.mark.parametrize("name", ["key", "length", "ok"])
def test_changed_sample_table(sealed: Location, name: str) -> None:
    injure(sealed, f"samples/{name}/c/0", position=2)
    with pytest.raises(DamageError, match=f"samples/{name}/c/0 changed"):
        open_group(sealed, make_spec().id)[f"samples/{name}"][...]


def test_what_was_not_sealed_does_not_exist(sealed: Location) -> None:
    sealed.write(f"{capture_path(make_spec().id)}/sites/extra/zarr.json", b"{}")
    group = open_group(sealed, make_spec().id)
    assert "extra" not in set(group["sites"].group_keys())
    with pytest.raises(KeyError):
        group["sites/extra"]


def test_sealed_is_read_only(sealed: Location) -> None:
    store = SealedStore(sealed, make_spec().id)
    with pytest.raises(StoreError, match="cannot be opened for writing"):
        store.with_read_only(False)
    with pytest.raises(ValueError, match="read-only"):
        open_group(sealed, make_spec().id)[ARRAY][:] = 0


def test_a_capture_without_its_manifest_is_not_readable(sealed: Location) -> None:
    sealed.delete(manifest_path(make_spec().id))
    with pytest.raises(NotFoundError, match="no sealed capture"):
        open_group(sealed, make_spec().id)


def test_the_pickle_is_small(sealed: Location) -> None:
    store = SealedStore(sealed, make_spec().id)
    assert "zarr.json" in store.expected
    assert len(pickle.dumps(store)) < 2000
    assert store == pickle.loads(pickle.dumps(store))

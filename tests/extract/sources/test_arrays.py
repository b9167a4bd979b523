"""npy, npz and zarr arrays, against the arrays that were written."""

import re

import fsspec
import numpy as np
import pytest
import zarr

from schemas.data import ArrayFiles
from schemas.errors import DataError
from tasks.extract.sources import arrays

X = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
Y = np.array(["a", "b", "a", "c", "c", "a", "b"])
Z = np.arange(7) / 4


def read(path, partition=None, **options):
    return arrays.read(ArrayFiles(path=str(path), **options), partition)


def values(source):
    return np.stack([sample.value for sample in source])


def test_npy_is_mapped_and_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", X)
    source = read(tmp_path / "x.npy")
    np.testing.assert_array_equal(values(source), X)
    assert source.keys()[:2] == ["x.npy:0", "x.npy:1"]
    value = source[2].value
    while value.base is not None and not isinstance(value, np.memmap):
        value = value.base
    assert isinstance(value, np.memmap)


def test_npz_with_labels(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y, z=Z)
    source = read(tmp_path / "d.npz", labels={"class": "y", "score": "z"})
    np.testing.assert_array_equal(values(source), X)
    assert source.labels() == {"class": Y.tolist(), "score": Z.tolist()}
    np.testing.assert_array_equal(values(read(tmp_path / "d.npz", array="z")), Z)


@pytest.mark.parametrize("chunks", [(1, 3, 2), (3, 2, 2), (7, 3, 2)])
def test_zarr_array_and_group(tmp_path, chunks):
    group = zarr.create_group(tmp_path / "d.zarr")
    group.create_array("x", shape=X.shape, dtype=X.dtype, chunks=chunks)[:] = X
    group.create_array("z", shape=Z.shape, dtype=Z.dtype)[:] = Z
    source = read(tmp_path / "d.zarr", array="x", labels={"score": "z"})
    np.testing.assert_array_equal(values(source), X)
    np.testing.assert_array_equal(source[5].value, X[5])
    np.testing.assert_array_equal(source[0].value, X[0])
    assert source.labels() == {"score": Z.tolist()}
    zarr.create_array(tmp_path / "one.zarr", data=X)
    np.testing.assert_array_equal(values(read(tmp_path / "one.zarr/")), X)


def test_zarr_reads_each_chunk_once_in_order(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(3, 3, 2))
    rows = arrays._Chunked(zarr.open_array(tmp_path / "x.zarr", mode="r"))
    reads = []

    class Spy:
        shape, dtype, chunks, shards = rows.shape, rows.dtype, (3, 3, 2), None

        def __getitem__(self, span):
            reads.append(span)
            return X[span]

    chunked = arrays._Chunked(Spy())
    np.testing.assert_array_equal(np.stack([chunked[n] for n in range(7)]), X)
    assert reads == [slice(0, 3), slice(3, 6), slice(6, 9)]


def test_a_glob_joins_files_in_order_and_partitions_them(tmp_path):
    np.save(tmp_path / "b.npy", X[4:])
    np.save(tmp_path / "a.npy", X[:4])
    source = read(tmp_path / "*.npy")
    np.testing.assert_array_equal(values(source), X)
    assert source.keys() == [f"a.npy:{n}" for n in range(4)] + [f"b.npy:{n}" for n in range(3)]
    np.testing.assert_array_equal(values(read(tmp_path / "*.npy", "b.npy")), X[4:])
    for name, part in (("p", X[:2]), ("q", X[2:])):
        zarr.create_array(tmp_path / f"{name}.zarr", data=part)
    np.testing.assert_array_equal(values(read(tmp_path / "*.zarr")), X)
    assert [file.name for file in arrays.files(ArrayFiles(path=str(tmp_path / "*.zarr")))] == [
        "p.zarr",
        "q.zarr",
    ]


def test_remote_npy_and_zarr():
    system = fsspec.filesystem("memory")
    try:
        with system.open("/arrays/x.npy", "wb") as stream:
            np.save(stream, X)
        np.testing.assert_array_equal(values(read("memory://arrays/x.npy")), X)
    finally:
        system.rm("/arrays", recursive=True)


def test_bytes_of_the_other_order_come_out_native(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    source = read(tmp_path / "x.npy")
    assert source[0].value.dtype.isnative
    np.testing.assert_array_equal(values(source), X)


def test_the_fingerprint_follows_bytes_names_and_options(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, z=Z)
    options = ArrayFiles(path=str(tmp_path / "d.npz"), array="x")
    found = {arrays.fingerprint(options), arrays.fingerprint(options.model_copy(update={"array": "z"}))}
    assert arrays.read(options).fingerprint in found
    zarr.create_array(tmp_path / "x.zarr", data=X)
    folder = ArrayFiles(path=str(tmp_path / "x.zarr"))
    found.add(arrays.fingerprint(folder))
    zarr.open_array(tmp_path / "x.zarr", mode="r+")[0, 0, 0] = 99
    found.add(arrays.fingerprint(folder))
    assert len(found) == 4
    assert arrays.read(folder).fingerprint in found


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        ({"x": X, "w": X}, {}, r"holds the arrays x, w; expected one, or its name in `array`"),
        ({"x": X}, {"array": "xx"}, r"has no array 'xx'; it has x \(nearest: x\)"),
        ({"x": X}, {"labels": {"l": "y"}}, "has no array 'y' for a label; it has x"),
        (
            {"x": X, "y": Z[:3]},
            {"labels": {"l": "y"}},
            r"label array 'y' has the shape \(3,\); expected \(7,\)",
        ),
        ({"x": Y}, {}, "holds <U1; expected real numbers"),
        ({"x": X.astype(complex)}, {}, "holds complex128; expected real numbers"),
        ({"x": X[:0]}, {}, r"has the shape \(0, 3, 2\); expected samples along the first axis"),
        ({"x": np.float32(1)}, {}, r"has the shape \(\); expected samples"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, made, options, message):
    np.savez(tmp_path / "d.npz", **made)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "d.npz", **options)


def test_pickles_are_never_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(
            DataError, match=rf"{name} cannot be read: ValueError: .*([Pp]ickle|Python objects)"
        ):
            read(tmp_path / name)


def test_other_files_and_shapes_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(DataError, match=r"expected a \.npy, \.npz or \.zarr"):
        read(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"none\.zarr"):
        read(tmp_path / "none.zarr")
    with pytest.raises(DataError, match=re.escape("none*.zarr matches no zarr")):
        read(tmp_path / "none*.zarr")
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :2])
    with pytest.raises(DataError, match=r"shape \(2, 2\), but .*a\.npy float32 of shape \(3, 2\)"):
        read(tmp_path / "*.npy")
    zarr.create_array(tmp_path / "x.zarr", data=X)
    with pytest.raises(DataError, match="is one array, yet 'x' is asked for; leave `array` out"):
        read(tmp_path / "x.zarr", array="x")

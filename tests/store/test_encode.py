"""Our shards are byte for byte those that zarr writes."""

from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from schemas.errors import StoreError
from schemas.receipts import FileDigest
from tasks.store import encode
from tasks.store.codecs import BloscOptions, add_array, blosc_options
from tasks.store.encode import encoded
from tasks.store.location import Location, digest_of

DTYPES = ("float32", "float16", "float64", "int64", "int32", "bool", "uint16", "int8")
CODECS = ("none", "lz4", "zstd", "codes")


def write_shard(place: Location, path: str, block: np.ndarray, **how: Any) -> FileDigest:
    """As writers of shards do."""
    with encoded(block, **how) as data:
        place.write(path, data, durable=False)
        return digest_of(data)


def by_zarr(values: np.ndarray, chunk_rows: int, shard_rows: int, codec: Any) -> dict[int, bytes]:
    """Shard number to its bytes, written by zarr alone."""
    store = MemoryStore()
    array = add_array(
        zarr.create_group(store, zarr_format=3), "x", values.shape, values.dtype.name, ("row", "feature")[: values.ndim],
        chunk_rows=chunk_rows, shard_rows=shard_rows, codec=codec,
    )  # fmt: skip
    array[:] = values
    prefix = "x/c/"
    return {
        int(key.removeprefix(prefix).partition("/")[0]): value.to_bytes()
        for key, value in store._store_dict.items()
        if key.startswith(prefix)
    }


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 60),
    width=st.none() | st.integers(1, 9),
    chunk_rows=st.integers(1, 7),
    chunks=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    codec=st.sampled_from(CODECS),
    seed=st.integers(0, 9),
)
def test_the_bytes_are_those_of_zarr(
    tmp_path_factory: pytest.TempPathFactory,
    n_rows: int, width: int | None, chunk_rows: int, chunks: int, dtype: str, codec: Any, seed: int,
) -> None:  # fmt: skip
    shape = (n_rows,) if width is None else (n_rows, width)
    values = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    shard_rows = chunk_rows * chunks
    place = Location(str(tmp_path_factory.mktemp("encode")))
    for number, expected in by_zarr(values, chunk_rows, shard_rows, codec).items():
        block = values[number * shard_rows : (number + 1) * shard_rows]
        digest = write_shard(place, "s", block, chunk_rows=chunk_rows, shard_rows=shard_rows, codec=codec)
        assert place.read("s") == expected
        assert digest == digest_of(expected)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_many_blocks_and_a_short_last_one(root: Location, dtype: str, codec: Any) -> None:
    """Chunks of a megabyte and more, several blocks of Blosc each; the second shard ends inside its first chunk."""
    rows = (1 << 20) // np.dtype(dtype).itemsize // 64
    values = (
        np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (3 * rows + 5, 64)).astype(dtype)
    )
    shards = by_zarr(values, rows, 2 * rows, codec)
    assert len(shards) == 2
    for number, expected in shards.items():
        block = values[number * 2 * rows : (number + 1) * 2 * rows]
        write_shard(root, "s", block, chunk_rows=rows, shard_rows=2 * rows, codec=codec)
        assert root.read("s") == expected


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("special", [np.nan, np.inf, -0.0, 1e-45])
def test_special_values_of_a_large_shard(root: Location, codec: Any, special: float) -> None:
    """Large enough for direct writing, and not contiguous."""
    values = np.random.default_rng(0).standard_normal((300, 4096), dtype=np.float32)[:, ::2]
    values[::7, ::3] = special
    write_shard(root, "s", values, chunk_rows=150, shard_rows=300, codec=codec)
    assert root.read("s") == by_zarr(np.ascontiguousarray(values), 150, 300, codec)[0]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [64, 1024])
def test_every_bit_comes_back(root: Location, codec: Any, rows: int) -> None:
    """Any 32 bits as a float: NaN of every payload, infinities, denormals, both zeros; in chunks that shuffle bits, and bytes."""
    bits = np.random.default_rng(rows).integers(0, 2**32, (2 * rows, 256), dtype=np.uint32)
    bits[::3] &= 0x807F_FFFF  # denormals and zeros
    bits[1::3] |= 0x7F80_0000  # infinities and NaN
    bits[0, :4] = (0, 0x8000_0000, 0x7F80_0001, 0xFFC0_0001)
    values = bits.view(np.float32)
    array = add_array(
        zarr.create_group(MemoryStore(), zarr_format=3), "x", values.shape, "float32", ("row", "feature"),
        chunk_rows=rows, shard_rows=2 * rows, codec=codec,
    )  # fmt: skip
    array[:] = values
    assert np.array_equal(np.asarray(array[:]).view(np.uint32), bits)
    write_shard(root, "s", values, chunk_rows=rows, shard_rows=2 * rows, codec=codec)
    assert root.read("s") == by_zarr(values, rows, 2 * rows, codec)[0]


def test_zstd_shuffles_bytes_where_each_fills_a_table_of_its_own() -> None:
    assert blosc_options("zstd", 4, 4 << 17) == BloscOptions(1, "shuffle", 1 << 20)
    assert blosc_options("zstd", 2, 2 << 17).shuffle == "shuffle"
    assert blosc_options("zstd", 4, (4 << 17) - 4) == BloscOptions(3, "bitshuffle", 1 << 20)
    assert blosc_options("zstd", 1, 1 << 30).shuffle == "bitshuffle"
    assert blosc_options("lz4", 4, 1 << 30) == BloscOptions(5, "bitshuffle", 0)


def test_zstd_in_large_chunks_nears_what_signs_and_exponents_allow() -> None:
    """Gaussian values: digits are random, so that no code of single numbers goes below the entropy of sign and exponent and 23 bits."""
    values = np.random.default_rng(0).standard_normal((1024, 384)).astype(np.float32)
    counts = np.unique(values.view(np.uint32) >> 23, return_counts=True)[1] / values.size
    limit = 32 / (23 - float((counts * np.log2(counts)).sum()))
    zstd, lz4 = (values.nbytes / len(by_zarr(values, 1024, 1024, codec)[0]) for codec in ("zstd", "lz4"))
    assert 0.975 * limit < zstd < limit
    assert lz4 < zstd


def test_memory_that_a_failed_write_may_still_read_is_not_used_again(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode._idle.clear()
    kept = []

    def refuse(self: Location, path: str, data: memoryview, *, durable: bool) -> None:
        kept.append(data)
        raise StoreError("stalled")

    ones, zeros = np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(Location, "write", refuse)
        with pytest.raises(StoreError):
            write_shard(root, "s", ones, chunk_rows=2, shard_rows=4, codec="none")
    before = bytes(kept[0])
    write_shard(root, "s", zeros, chunk_rows=2, shard_rows=4, codec="none")
    assert bytes(kept[0]) == before
    assert len(encode._idle) == 1
    write_shard(root, "s", ones, chunk_rows=2, shard_rows=4, codec="none")
    assert len(encode._idle) == 1
    assert root.read("s") == before

"""How values become bytes in a store: codec, checksum, fill value.

`zstd` lays the first bytes of a chunk's numbers together, then the second ones, ... (byte shuffle), where a chunk is large enough that
zstd, which has one table for each 128 KiB of what it is given, has tables of its own for signs and exponents; digits, which nothing
compresses, then cost nothing. Level 1 leaves more to these tables than higher ones, which take chance repeats for structure. In smaller
chunks tables would be shared, and bits are shuffled, as they always are for `lz4`, which has no tables.

`codes` is for integer codes of rows, whose columns differ in spread: columns of a chunk lie one after another (zarr's `transpose`), each
then has its own statistics in zstd's entropy stage, and no shuffle parts what belongs together. All are core codecs of Zarr v3.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from schemas.capture import ArrayCodec
from tasks.store.paths import stored_dtype

CODES_LEVEL = 3
"""Of plain zstd for `codes`: higher ones cost time and save next to nothing."""
TABLE_BYTES = 1 << 17
"""What zstd codes with one table."""
BLOCK_BYTES = 1 << 20
"""What Blosc shuffles at a time for zstd; what it chooses itself is too little for tables of its own for each byte of a number."""


class BloscOptions(NamedTuple):
    """How Blosc codes a chunk."""

    level: int
    shuffle: Literal["shuffle", "bitshuffle"]
    block_bytes: int
    """0: what Blosc thinks best."""


def blosc_options(codec: Literal["lz4", "zstd"], item_bytes: int, chunk_bytes: int) -> BloscOptions:
    """Level, shuffle and block size; they depend on the shape of a chunk, never on its values.

    Args:
        codec: Blosc's.
        item_bytes: of a number.
        chunk_bytes: of a chunk before it is coded.
    """
    if codec == "lz4":
        return BloscOptions(5, "bitshuffle", 0)
    if item_bytes > 1 and chunk_bytes >= item_bytes * TABLE_BYTES:
        return BloscOptions(1, "shuffle", BLOCK_BYTES)
    return BloscOptions(3, "bitshuffle", BLOCK_BYTES)


def codec_chain(
    codec: ArrayCodec, store_dtype: str, chunk_values: int
) -> tuple[BytesCodec, *tuple[BytesBytesCodec, ...]]:
    """The codecs of a chunk, in order: bytes, Blosc (unless `none`) or plain zstd (`codes`), crc32c.

    Args:
        codec: of the array.
        store_dtype: a store dtype or NumPy dtype name; its item size is what shuffles need.
        chunk_values: numbers of a chunk.
    """
    size = np.dtype(stored_dtype(store_dtype)).itemsize
    endian = BytesCodec() if size > 1 else BytesCodec(endian=None)
    if codec == "none":
        return (endian, Crc32cCodec())
    if codec == "codes":
        return (endian, ZstdCodec(level=CODES_LEVEL), Crc32cCodec())
    how = blosc_options(codec, size, size * chunk_values)
    blosc = BloscCodec(
        cname=codec, clevel=how.level, shuffle=how.shuffle, typesize=size, blocksize=how.block_bytes
    )
    return (endian, blosc, Crc32cCodec())


def fill_value(dtype: str) -> float | int | bool:
    """What a reserved row holds: NaN, -1, False, or 0 for unsigned integers."""
    kind = np.dtype(dtype).kind
    return {"f": float("nan"), "i": -1, "b": False}.get(kind, 0)


def add_array(
    group: zarr.Group,
    path: str,
    shape: tuple[int, ...],
    dtype: str,
    dims: tuple[str, ...],
    *,
    chunk_rows: int,
    shard_rows: int | None = None,
    codec: ArrayCodec = "lz4",
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Write the metadata of a numeric array whose chunks and shards are runs along the first axis."""
    rest = tuple(max(length, 1) for length in shape[1:])
    chunk = (max(chunk_rows, 1), *rest) if shape else ()
    serializer, *compressors = codec_chain(codec, dtype, math.prod(chunk))
    columns_first = codec == "codes" and len(shape) > 1
    return group.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=chunk,
        shards=None if shard_rows is None else (shard_rows, *rest),
        filters=[TransposeCodec(order=tuple(reversed(range(len(shape)))))] if columns_first else None,
        serializer=serializer,
        compressors=compressors,
        fill_value=fill_value(dtype),
        dimension_names=dims,
        attributes=attributes or {},
        config={"write_empty_chunks": True},
    )


def add_strings(group: zarr.Group, path: str, values: list[str], dim: str, chunk_rows: int) -> None:
    """Write texts as variable-length UTF-8 (zarr's `string`, which has a specification) with a crc32c."""
    array = group.create_array(
        path,
        shape=(len(values),),
        dtype=str,
        chunks=(chunk_rows,),
        compressors=[Crc32cCodec()],
        dimension_names=(dim,),
        config={"write_empty_chunks": True},
    )
    if values:
        array[:] = np.array(values, dtype=np.dtypes.StringDType())

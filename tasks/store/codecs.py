"""How values become bytes in a store: codec, checksum, fill value.

`codes` is for integer codes of rows, whose columns differ in spread: columns of a chunk lie one after another (zarr's `transpose`), each
then has its own statistics in zstd's entropy stage, and no shuffle parts what belongs together. All are core codecs of Zarr v3.
"""

from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from schemas.capture import ArrayCodec
from tasks.store.paths import stored_dtype

LEVELS: dict[ArrayCodec, int] = {"lz4": 5, "zstd": 3, "codes": 3}
"""Levels of Blosc, and of plain zstd for `codes`: higher ones cost time and save next to nothing."""


def codec_chain(codec: ArrayCodec, store_dtype: str) -> tuple[BytesCodec, *tuple[BytesBytesCodec, ...]]:
    """The codecs of a chunk, in order: bytes, Blosc with bit shuffle (unless `none`) or plain zstd (`codes`), crc32c.

    Args:
        codec: of the array.
        store_dtype: a store dtype or NumPy dtype name; its item size is what the bit shuffle needs.
    """
    size = np.dtype(stored_dtype(store_dtype)).itemsize
    endian = BytesCodec() if size > 1 else BytesCodec(endian=None)
    if codec == "none":
        return (endian, Crc32cCodec())
    if codec == "codes":
        return (endian, ZstdCodec(level=LEVELS[codec]), Crc32cCodec())
    blosc = BloscCodec(cname=codec, clevel=LEVELS[codec], shuffle="bitshuffle", typesize=size)
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
    serializer, *compressors = codec_chain(codec, dtype)
    columns_first = codec == "codes" and len(shape) > 1
    return group.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=(max(chunk_rows, 1), *rest) if shape else (),
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

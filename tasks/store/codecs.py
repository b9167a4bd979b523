"""How values become bytes in a store: codec, checksum, fill value."""

from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from schemas.capture import Codec
from tasks.store.paths import stored_dtype

LEVELS: dict[Codec, int] = {"lz4": 5, "zstd": 3}
"""Blosc levels: higher ones cost time and save next to nothing on floats."""


def codec_chain(codec: Codec, store_dtype: str) -> tuple[BytesCodec, *tuple[BytesBytesCodec, ...]]:
    """The codecs of a chunk, in order: bytes, Blosc with bit shuffle (unless `none`), crc32c.

    Args:
        codec: none, lz4 or zstd.
        store_dtype: a store dtype or NumPy dtype name; its item size is what the bit shuffle needs.
    """
    size = np.dtype(stored_dtype(store_dtype)).itemsize
    endian = BytesCodec() if size > 1 else BytesCodec(endian=None)
    if codec == "none":
        return (endian, Crc32cCodec())
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
    codec: Codec = "lz4",
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Write the metadata of a numeric array whose chunks and shards are runs along the first axis."""
    rest = tuple(max(length, 1) for length in shape[1:])
    serializer, *compressors = codec_chain(codec, dtype)
    return group.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=(max(chunk_rows, 1), *rest) if shape else (),
        shards=None if shard_rows is None else (shard_rows, *rest),
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

"""A whole shard as bytes, exactly those that zarr writes for it, without the event loop, threads and copies that zarr spends on it.

A shard is its chunks one after another, then an index: offset and length of each chunk and a crc32c (the `sharding_indexed` codec of
Zarr v3). Encoding one takes a pass over its values; zarr's own way costs some milliseconds more for every array, however small.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc
from numcodecs.blosc import BITSHUFFLE, MAX_OVERHEAD, SHUFFLE, Blosc
from numcodecs.zstd import Zstd

from schemas.capture import ArrayCodec
from tasks.store.codecs import CODES_LEVEL, blosc_options, fill_value

CHECKSUM_BYTES = 4
ENTRY_BYTES = 16
"""Offset and length of a chunk in the index."""
ZSTD_OVERHEAD = 1024
"""Most bytes by which zstd makes a chunk longer, beside one in 256 of them."""
ABSENT = 2**64 - 1
"""Offset and length of a chunk that is not there."""

blosc.use_threads = (
    False  # as zarr does: several threads place blocks in the order in which they finish, which varies
)

_idle: list[mmap.mmap] = []
"""Memory of shards that were written, for the next one."""


@contextmanager
def encoded(
    block: npt.NDArray[Any], *, chunk_rows: int, shard_rows: int, codec: ArrayCodec
) -> Iterator[memoryview]:
    """The bytes of a shard, valid inside the `with`; they lie as direct writing wants them.

    Args:
        block: its rows, [row] or [row, feature]; fewer in a short last shard.
        chunk_rows: rows of a chunk.
        shard_rows: rows of a shard, a multiple of `chunk_rows`.
        codec: of the array.
    """
    rows, n_chunks = _whole_chunks(block, chunk_rows), shard_rows // chunk_rows
    with _memory(_most_bytes(rows, n_chunks)) as memory:
        yield memoryview(memory)[: encode_shard(rows, n_chunks, codec, chunk_rows, memory)]


def encode_shard(
    rows: npt.NDArray[Any], n_chunks: int, codec: ArrayCodec, chunk_rows: int, memory: mmap.mmap
) -> int:
    """Encode a shard into memory; returns how many bytes it takes there.

    Args:
        rows: [row] or [row, feature], contiguous, a multiple of `chunk_rows` of them.
        n_chunks: of the shard; those past the rows are absent, as the index says.
        codec: of the chunks, see `codec_chain`.
        chunk_rows: rows of a chunk.
        memory: large enough.
    """
    out = np.frombuffer(memory, dtype=np.uint8)
    plain = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    index = np.full((n_chunks, 2), ABSENT, dtype="<u8")
    end = 0
    for number in range(len(rows) // chunk_rows):
        chunk = plain[number * chunk_rows : (number + 1) * chunk_rows]
        laid = np.ascontiguousarray(chunk.T) if codec == "codes" else chunk
        flat = laid.reshape(-1).view(np.uint8)
        begin, end = end, _append(out, end, _compressed(flat, rows.dtype.itemsize, codec))
        index[number] = begin, end - begin
    return _append(out, end, index.reshape(-1).view(np.uint8))


def _compressed(chunk: npt.NDArray[np.uint8], item_bytes: int, codec: ArrayCodec) -> npt.NDArray[np.uint8]:
    if codec == "none":
        return chunk
    if codec == "codes":
        codec_of_chunks: Any = Zstd(level=CODES_LEVEL)
    else:
        how = blosc_options(codec, item_bytes, chunk.nbytes)
        shuffle = SHUFFLE if how.shuffle == "shuffle" else BITSHUFFLE
        codec_of_chunks = Blosc(codec, how.level, shuffle, how.block_bytes, typesize=item_bytes)
    return np.frombuffer(codec_of_chunks.encode(chunk), dtype=np.uint8)


def _append(out: npt.NDArray[np.uint8], begin: int, data: npt.NDArray[np.uint8]) -> int:
    """Put data and their crc32c at a place; returns where they end."""
    end = begin + len(data)
    out[begin:end] = data
    whole = end + CHECKSUM_BYTES
    out[end:whole] = np.array([google_crc32c.value(data)], dtype="<u4").view(np.uint8)
    return whole


def _whole_chunks(block: npt.NDArray[Any], chunk_rows: int) -> npt.NDArray[Any]:
    """The rows of a shard; what of the last chunk lies past the end of the array is fill."""
    missing = -len(block) % chunk_rows
    if not missing:
        return np.ascontiguousarray(block)
    fill = np.full((missing, *block.shape[1:]), fill_value(block.dtype.name), dtype=block.dtype)
    return np.concatenate([block, fill])


def _most_bytes(rows: npt.NDArray[Any], n_chunks: int) -> int:
    each: int = MAX_OVERHEAD + ZSTD_OVERHEAD + CHECKSUM_BYTES + ENTRY_BYTES
    return rows.nbytes + rows.nbytes // 256 + n_chunks * each + CHECKSUM_BYTES


@contextmanager
def _memory(n_bytes: int) -> Iterator[mmap.mmap]:
    """Memory for a shard, on pages of its own; it is used again unless something failed and may still read it."""
    try:
        memory = _idle.pop()
    except IndexError:
        memory = mmap.mmap(-1, n_bytes)
    if len(memory) < n_bytes:
        memory = mmap.mmap(-1, n_bytes)
    yield memory
    _idle.append(memory)

"""Large files written past the page cache: a capture is larger than memory, and nothing of it is read soon.

A buffered write allocates a page of cache for every 4 KiB, copies into it, and makes other programs' pages leave; on a virtual
machine whose host has to back new pages that is slower than the disk. Where the file system or the system does not know
direct writing, bytes go through the cache as ever.
"""

import ctypes
import errno
import mmap
import os
import threading

try:
    import fcntl

    DIRECT: int = os.O_DIRECT
except (ImportError, AttributeError):  # not Linux
    DIRECT = 0

BLOCK_BYTES = 4096
"""What addresses, lengths and offsets must be multiples of."""
STEP_BYTES = 4 << 20
"""Bytes that are copied to aligned memory and written at a time."""
LEAST_BYTES = 1 << 20
"""Smaller files are not worth it."""

_aligned = threading.local()


def pays_off(n_bytes: int) -> bool:
    """Whether a file of this size should be opened with the flag `DIRECT`."""
    return bool(DIRECT) and n_bytes >= LEAST_BYTES


def write_direct(descriptor: int, data: memoryview) -> None:
    """Write all of `data` to a new file that was opened with `DIRECT`; its length is exact afterwards.

    Args:
        descriptor: of an empty file, at offset 0.
        data: flat, of bytes.

    Cost: a transfer by the device, no page cache. What does not begin at a multiple of `BLOCK_BYTES` in memory, and the last bytes, are
    copied to memory that does and stays in cache.
    """
    whole = len(data) // BLOCK_BYTES * BLOCK_BYTES if _is_aligned(data) else 0
    _write(descriptor, data[:whole])
    memory = _memory()
    for first in range(whole, len(data), STEP_BYTES):
        part = data[first : first + STEP_BYTES]
        memory[: len(part)] = part
        padded = -(-len(part) // BLOCK_BYTES) * BLOCK_BYTES
        _write(descriptor, memoryview(memory)[:padded])
    os.ftruncate(descriptor, len(data))


def _is_aligned(data: memoryview) -> bool:
    """Whether the first byte lies at a multiple of `BLOCK_BYTES`; of what is read-only, that cannot be asked."""
    if data.readonly or not data:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % BLOCK_BYTES == 0


def _memory() -> mmap.mmap:
    if not hasattr(_aligned, "memory"):
        _aligned.memory = mmap.mmap(-1, STEP_BYTES)
    memory: mmap.mmap = _aligned.memory
    return memory


def _write(descriptor: int, view: memoryview) -> None:
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _go_buffered(descriptor):
                raise


def _go_buffered(descriptor: int) -> bool:
    """Take the flag from an open file; False if it did not have it."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~DIRECT)
    return bool(flags & DIRECT)

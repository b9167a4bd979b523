"""Memory that stays flat over any number of batches: what the C libraries below torch keep, and what they give back.

By default glibc maps every tensor of some megabytes anew and faults its pages in again, every thread that ever encoded a chunk
keeps an arena of its own, and oneDNN keeps a compiled kernel for each of the last 1,024 batch shapes, each lying somewhere among
the freed tensors, so that the next larger one finds no room: a worker would spend a good part of its time on page faults, and grow
with every new batch shape.
"""

import ctypes
from collections.abc import Callable
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Names of mallopt(3)."""
KEEP_BYTES = 1 << 30
ARENAS = 2


@cache
def keep_memory() -> bool:
    """Set glibc's part once per process, before the first forward; False where there is no glibc, and nothing changes."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        options = ((TRIM_THRESHOLD, KEEP_BYTES), (MMAP_THRESHOLD, KEEP_BYTES), (ARENA_MAX, ARENAS))
        taken = [bool(libc.mallopt(name, value)) for name, value in options]
        return all(taken)
    except (OSError, AttributeError):
        return False


def give_back() -> None:
    """Return freed pages to the system, where there is glibc: gaps that batches of varying shapes leave would add up over units.

    Cost: the pages of one batch are faulted in again, some milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
    return trim

"""Memory that stays flat over any number of batches: what the C libraries below torch keep, and what they give back.

By default glibc maps every tensor of some megabytes anew and faults its pages in again, every thread that ever encoded a chunk
keeps an arena of its own, and oneDNN keeps a compiled kernel for each of the last 1,024 batch shapes, each lying somewhere among
the freed tensors, so that the next larger one finds no room: a worker would spend a good part of its time on page faults, and grow
with every new batch shape.
"""

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Names of mallopt(3)."""
KEEP_BYTES = 1 << 30
ARENAS = 2


@cache
def keep_memory() -> bool:
    """Set glibc's part once per process, before the first forward or fold; False where there is no glibc, and nothing changes."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        options = ((TRIM_THRESHOLD, KEEP_BYTES), (MMAP_THRESHOLD, KEEP_BYTES), (ARENA_MAX, ARENAS))
        taken = [bool(libc.mallopt(name, value)) for name, value in options]
        return all(taken)
    except (OSError, AttributeError):
        return False

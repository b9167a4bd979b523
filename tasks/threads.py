"""How many threads a process may have, told to libraries through the environment before they load; and which run units."""

import ctypes
import threading

LEAST_ENCODERS = 2
"""Threads that compress chunks beside the forward; more keep a buffer each and win nothing where a forward sets the pace."""
SPINS = 1000
"""Rounds that an idle thread of torch spins before it sleeps: microseconds, where libgomp's default takes the core from BLAS, whose
threads are others, for milliseconds. Moments on two threads take about half the time."""
MAPPED_BYTES, KEPT_BYTES = 1 << 25, 1 << 26
"""Smaller blocks of memory are not given back to the system each time, to be fetched page by page again; nor is what is free, up to so
much. Stages with intervals take 12 % less time."""


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables for a process whose results are computed with that many threads.

    They must be set before torch, BLAS and zarr are used: results depend on the first two.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {
        "MALLOC_MMAP_THRESHOLD_": str(MAPPED_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
        "ZARR_THREADING__MAX_WORKERS": str(max(LEAST_ENCODERS, threads)),
        "GOMP_SPINCOUNT": str(SPINS),
    }


def keep_freed_memory() -> None:
    """For this process what `thread_variables` say of memory, where the C library is one that listens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_thread = threading.local()


def share_process() -> None:
    """From now on the calling thread does its jobs beside other threads that do the same."""
    _thread.shares = True


def shares_process() -> bool:
    """Whether the calling thread does its jobs beside others."""
    return bool(getattr(_thread, "shares", False))

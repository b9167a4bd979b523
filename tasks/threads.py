"""How many threads a process may have, told to libraries through the environment before they load; and which run units."""

import threading

LEAST_ENCODERS = 2
"""Threads that compress chunks beside the forward; more keep a buffer each and win nothing where a forward sets the pace."""
SPINS = 1000
"""Rounds that an idle thread of torch spins before it sleeps: microseconds, where libgomp's default takes the core from BLAS, whose
threads are others, for milliseconds. Moments on two threads take about half the time."""


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables for a process whose results are computed with that many threads.

    They must be set before torch, BLAS and zarr are used: results depend on the first two.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {
        "ZARR_THREADING__MAX_WORKERS": str(max(LEAST_ENCODERS, threads)),
        "GOMP_SPINCOUNT": str(SPINS),
    }


_thread = threading.local()


def share_process() -> None:
    """From now on the calling thread does its jobs beside other threads that do the same."""
    _thread.shares = True


def shares_process() -> bool:
    """Whether the calling thread does its jobs beside others."""
    return bool(getattr(_thread, "shares", False))

"""Read items one after the other, or the next while the present one is worked on.

Whoever loops over the items should `del` its own at the end of the body, so that none stays while the next is read.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(reads: Sequence[Callable[[], T]]) -> Iterator[T]:
    """The results of all reads, in order; one runs ahead in a thread, so that two results exist at a time."""
    if not reads:
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        coming = pool.submit(reads[0])
        for read in reads[1:]:
            present = coming.result()
            coming = pool.submit(read)
            yield present
            del present
        yield coming.result()
    finally:
        # Not waiting: a loop that an error broke off is collected in any thread, that of zarr's event loop too, without which no read ends.
        pool.shutdown(wait=False, cancel_futures=True)


def in_turn(reads: Sequence[Callable[[], T]]) -> Iterator[T]:
    """The results of all reads, in order; each is read when it is asked for, so that one exists at a time."""
    for read in reads:
        yield read()

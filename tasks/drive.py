"""How many small jobs are run: here, one after the other or in threads, or by anything that keeps the same promise."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Protocol, TypeVar

from threadpoolctl import threadpool_limits

from tasks.extract.allocator import keep_memory
from tasks.threads import share_process

T = TypeVar("T")
R = TypeVar("R")
LOG = logging.getLogger(__name__)


class Driver(Protocol):
    """Runs a function over items, somewhere.

    The function is a top-level one and picklable; items and results are small and picklable. Items may run in
    any order and at the same time, so that they must not depend on each other.
    """

    def __call__(self, function: Callable[[T], R], items: Sequence[T], on_done: Callable[[R], None]) -> None:
        """Run all items and call `on_done` in the calling process with each result, in the order they finish.

        Raises:
            Whatever the function raised first; what is finished by then stays finished.
        """


def serial(function: Callable[[T], R], items: Sequence[T], on_done: Callable[[R], None]) -> None:
    """Run all items in this process, in order: see `Driver`."""
    for item in items:
        on_done(function(item))


class Threads:
    """Runs items in threads of this process: see `Driver`. They share its libraries, and the weights of its network.

    BLAS and torch compute with one thread in each. Threads, with the memory that they fill again and again, are kept between
    calls; leaving the `with` ends them.
    """

    def __init__(self, n: int) -> None:
        """Begin nothing yet.

        Args:
            n: items at a time.
        """
        keep_memory()
        self._pool = ThreadPoolExecutor(n, "job", _begin)

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, function: Callable[[T], R], items: Sequence[T], on_done: Callable[[R], None]) -> None:
        """Run all items; `on_done` is called here, in the order in which items finish.

        Raises:
            Whatever the function raised first; items that run are waited for, also after Ctrl-C, the others are dropped.
        """
        finished: SimpleQueue[Future[R]] = SimpleQueue()
        # The outer limit is what the limits of single items fall back to: it must not change while any of them runs.
        with threadpool_limits(1):
            running = [self._pool.submit(function, item) for item in items]
            for future in running:
                future.add_done_callback(finished.put)
            try:
                for _ in running:
                    on_done(finished.get().result())
            except KeyboardInterrupt:
                LOG.warning("stopping: what is under way ends first, so that it need not be done again")
                raise
            finally:
                for future in running:
                    future.cancel()
                wait(running)


def _begin() -> None:
    """Set up a thread: OpenMP counts threads for each thread anew."""
    share_process()
    threadpool_limits(1)


def results(driver: Driver, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The results of all items, in the order they finished; a single item may as well be run through it."""
    found: list[R] = []
    driver(function, items, found.append)
    return found

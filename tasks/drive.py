"""How many small jobs are run: here, one after the other, or by anything that keeps the same promise."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


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


def results(driver: Driver, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The results of all items, in the order they finished; a single item may as well be run through it."""
    found: list[R] = []
    driver(function, items, found.append)
    return found

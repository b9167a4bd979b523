"""How a fold is cut: units in order inside a span, spans in a fixed balanced tree."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MOST_SPANS = 64


def spans(n_units: int, most: int = MOST_SPANS) -> list[range]:
    """Consecutive runs of units, at most `most`, all of one length but the last."""
    length = max(1, -(-n_units // most))
    return [range(first, min(first + length, n_units)) for first in range(0, n_units, length)]


def tree(get: Callable[[int], T], n: int, merge: Callable[[T, T], T]) -> T:
    """Merge get(0) .. get(n - 1) in a balanced binary tree that depends on n alone.

    Holds at most log2(n) + 1 values at a time.
    """

    def over(low: int, high: int) -> T:
        if high - low == 1:
            return get(low)
        middle = (low + high + 1) // 2
        return merge(over(low, middle), over(middle, high))

    return over(0, n)

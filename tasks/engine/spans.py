"""How a fold is cut: units in order inside a span, spans in a fixed balanced tree."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from schemas.layout import Space

T = TypeVar("T")

MOST_SPANS = 64
LEAST_BYTES, LARGEST_BYTES = 1 << 24, 1 << 30
"""Of the rows of a span: the saved state of a span must be small beside them."""
ROWS_PER_FEATURE = 128
"""So many rows hold as much as thirty-two covariances."""


def spans(n_units: int, most: int = MOST_SPANS, least: int = 1) -> list[range]:
    """Consecutive runs of units, at most `most` and of no less than `least`, all of one length but the last."""
    length = max(1, least, -(-n_units // most))
    return [range(first, min(first + length, n_units)) for first in range(0, n_units, length)]


class Span(NamedTuple):
    """A run of units, one of several."""

    number: int
    of: int
    units: range


def spans_of(space: Space, width: int) -> tuple[Span, ...]:
    """The spans of rows of so many features, by the layout alone; of a network, whose rows have none, as many as may be."""
    unit_bytes = 4 * width * space.shard_rows * space.unit_shards
    wanted = min(LARGEST_BYTES, max(LEAST_BYTES, 4 * ROWS_PER_FEATURE * width**2))
    runs = spans(space.n_units, least=wanted // unit_bytes if unit_bytes else 1)
    return tuple(Span(number, len(runs), units) for number, units in enumerate(runs))


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

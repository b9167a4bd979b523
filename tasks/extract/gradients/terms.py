"""What one use of a parameter adds to its gradient: an outer product over positions, or the values themselves."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Dense(NamedTuple):
    """One side of an outer product."""

    values: Tensor
    """[sample, position, entry]"""
    projected: bool = False
    """Whether a random map has been applied."""

    @property
    def positions(self) -> int:
        """Per sample."""
        return int(self.values.shape[1])


class Hot(NamedTuple):
    """One side of an outer product of which each position has a single entry: a word of an embedding."""

    ids: Tensor
    """int64 [sample, position]"""
    n: int
    """Entries."""
    weight: Tensor | None = None
    """[sample, position]: 0 where a position does not count; None: 1 everywhere."""

    @property
    def positions(self) -> int:
        """Per sample."""
        return int(self.ids.shape[1])


Side = Dense | Hot


class Outer(NamedTuple):
    """The sum over positions of rows x columns."""

    rows: Side
    columns: Side


class Formed(NamedTuple):
    """The gradient itself, formed sample by sample."""

    gradient: Callable[[int], Tensor]
    """Sample -> [row, column], or [entry]."""


class Values(NamedTuple):
    """The gradient itself."""

    values: Tensor
    """[sample, ...], the parameter's shape behind."""


Term = Outer | Formed | Values

CHUNK = 1 << 24
"""Most entries that are formed at a time where a form is made of formed gradients."""


def full(values: Tensor) -> Tensor:
    """In float32 at least, in which sums of half precision are taken."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def form(term: Term, samples: slice) -> Tensor:
    """[sample, row, column] of a matrix, [sample, entry] of a vector: the gradient of some samples, formed."""
    if isinstance(term, Values):
        some = term.values[samples]
        return some.flatten(2) if some.ndim > 2 else some.reshape(len(some), -1)
    if isinstance(term, Formed):
        return torch.stack([term.gradient(n) for n in range(samples.start, samples.stop)])
    rows, columns = part(term.rows, samples), part(term.columns, samples)
    if isinstance(rows, Hot):
        return _scattered(rows, columns)
    if isinstance(columns, Hot):
        return _scattered(columns, rows).mT
    return torch.bmm(full(rows.values).mT, full(columns.values))


def part(side: Side, some: slice) -> Side:
    """Some samples of a side."""
    if isinstance(side, Dense):
        return Dense(side.values[some], side.projected)
    return Hot(side.ids[some], side.n, None if side.weight is None else side.weight[some])


def chunks(n: int, entries: int) -> list[slice]:
    """Samples, so many at a time that no more than CHUNK entries are formed."""
    size = max(1, CHUNK // max(1, entries))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def form_cost(term: Term, rows: int, columns: int) -> int:
    """Multiplications per sample of `form`, roughly."""
    if not isinstance(term, Outer):
        return rows * columns
    hot = isinstance(term.rows, Hot) or isinstance(term.columns, Hot)
    return rows * columns + (0 if hot else (term.rows.positions - 1) * rows * columns)


def inner(a: Outer, b: Outer) -> Tensor:
    """float [sample]: inner products of two outer sums, by the products of their positions; nothing is formed."""
    return (_gram(a.rows, b.rows) * _gram(a.columns, b.columns)).sum((1, 2))


def inner_cost(a: Outer, b: Outer) -> int:
    """Multiplications per sample of `inner`, roughly."""
    positions = a.rows.positions * b.rows.positions
    return sum(
        positions * (1 if isinstance(x, Hot) or isinstance(y, Hot) else int(x.values.shape[2]))
        for x, y in ((a.rows, b.rows), (a.columns, b.columns))
    )


def _gram(a: Side, b: Side) -> Tensor:
    """[sample, position of a, position of b]"""
    if isinstance(a, Dense) and isinstance(b, Dense):
        return torch.bmm(full(a.values), full(b.values).mT)
    if isinstance(a, Hot) and isinstance(b, Hot):
        same = (a.ids[:, :, None] == b.ids[:, None, :]).to(torch.float32)
        return _weigh(_weigh(same, a, 1), b, 2)
    if isinstance(a, Hot) and isinstance(b, Dense):
        picked = full(b.values).gather(2, a.ids[:, None, :].expand(-1, b.positions, -1))
        return _weigh(picked, a, 2).mT
    return _gram(b, a).mT


def _weigh(values: Tensor, side: Hot, axis: int) -> Tensor:
    if side.weight is None:
        return values
    weight = side.weight.to(values.dtype)
    return values * (weight[:, :, None] if axis == 1 else weight[:, None, :])


def _scattered(hot: Hot, dense: Side) -> Tensor:
    """[sample, entry of hot, entry of dense]"""
    if isinstance(dense, Hot):
        raise TypeError("an outer product of two one-hot sides does not occur")
    values = full(dense.values)
    values = values if hot.weight is None else values * hot.weight[:, :, None].to(values.dtype)
    out = values.new_zeros(len(values), hot.n, values.shape[2])
    return out.scatter_add_(1, hot.ids[:, :, None].expand_as(values), values)

"""Forms of per-sample gradients: what becomes of each use's term as the backward brings it."""

from collections.abc import Mapping
from math import isqrt, prod
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from schemas.gradients import Exact, Factors, Global, Keep, Kronecker, Norms, Sketch
from tasks.extract.gradients.projections import (
    Places,
    Shape,
    kept_axis,
    matrix_shape,
    places,
    projection,
)
from tasks.extract.gradients.projections import (
    Side as SideName,
)
from tasks.extract.gradients.terms import (
    Dense,
    Hot,
    Outer,
    Side,
    Term,
    Values,
    form,
    form_cost,
    inner,
    inner_cost,
)

CHUNK = 1 << 24
"""Most entries that are formed at a time where a form is made of formed gradients."""


class Maps(NamedTuple):
    """Random maps of a matrix."""

    rows: Tensor | None
    """[q, row]; None: rows stay as they are."""
    columns: Tensor
    """[p, column]"""


@runtime_checkable
class Keeper(Protocol):
    """Takes the terms of a batch, and gives what is kept."""

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """What is kept until the backward of a side that the forward knows: less than all of it, where that does."""

    def maps(self, name: str) -> "Maps | None":
        """What a convolution's weight is projected by; None where terms are wanted whole."""

    def add(self, name: str, term: Term) -> None:
        """One use's term; sides that were held are given as `hold` returned them."""

    def settle(self, name: str) -> None:
        """All terms of a parameter have come."""

    def finish(self) -> dict[str, Tensor]:
        """Name to [sample, feature]; the name is empty for all parameters together."""


class Plan:
    """Names, shapes and random maps of a capture's parameters; maps are drawn once and kept on the device."""

    def __init__(
        self, shapes: Mapping[str, Shape], keep: Keep, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes = dict(shapes)
        self.keep = keep
        self.device = device
        self.dtype = dtype
        self._seed = seed
        self._maps: dict[tuple[str, SideName], Tensor | None] = {}
        self._places: dict[tuple[str, SideName], Places] = {}

    def matrix(self, name: str) -> Shape:
        """(rows, columns), or (entries,)."""
        return matrix_shape(self.shapes[name])

    def map(self, name: str, side: SideName) -> Tensor | None:
        """[p, n] of a side; None where it stays as it is."""
        key = name, side
        if key not in self._maps:
            self._maps[key] = self._draw(name, side)
        return self._maps[key]

    def maps(self, name: str) -> Maps | None:
        """Both maps of a matrix; None where its columns stay as they are."""
        columns = self.map(name, "columns")
        return None if columns is None else Maps(self.map(name, "rows"), columns)

    def places(self, name: str, side: SideName) -> Places:
        """The count sketch of a side."""
        key = name, side
        if key not in self._places:
            n = self._length(name, side)
            found = places(self._seed, name, side, self._dimension, n)
            self._places[key] = Places(found.place.to(self.device), found.sign.to(self.device, self.dtype))
        return self._places[key]

    @property
    def _dimension(self) -> int:
        keep = self.keep
        return keep.dimension if isinstance(keep, Global | Sketch) else 0

    def _length(self, name: str, side: SideName) -> int:
        shape = self.matrix(name)
        return shape[0] if side == "rows" else (shape[1] if len(shape) > 1 else 1)

    def _draw(self, name: str, side: SideName) -> Tensor | None:
        keep, n = self.keep, self._length(name, side)
        if isinstance(keep, Global):
            p = isqrt(keep.dimension)
        elif isinstance(keep, Kronecker | Factors):
            p = kept_axis(n, keep.dimension)
            if p == n:
                return None
        else:
            return None
        drawn = projection(self._seed, name, side, p, n, keep.distribution)
        return drawn.to(self.device, self.dtype)


def make_keeper(plan: Plan, n: int) -> Keeper:
    """An empty keeper for a batch of n samples."""
    keep = plan.keep
    if isinstance(keep, Exact):
        return ExactKeeper(plan, n)
    if isinstance(keep, Kronecker | Global):
        return ProjectingKeeper(plan, n)
    if isinstance(keep, Sketch):
        return SketchKeeper(plan, n)
    return NormKeeper(plan, n) if isinstance(keep, Norms) else FactorKeeper(plan, n, keep)


class ExactKeeper:
    """Every entry; terms add up in place."""

    def __init__(self, plan: Plan, n: int) -> None:
        self._plan = plan
        self._n = n
        self._sums: dict[str, Tensor] = {}

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """The side itself."""
        return side

    def maps(self, name: str) -> Maps | None:
        """Terms are wanted whole."""
        return None

    def add(self, name: str, term: Term) -> None:
        """Form it, and add it."""
        formed = form(term, slice(0, self._n)).flatten(1).to(self._plan.dtype)
        self._sums[name] = self._sums[name].add_(formed) if name in self._sums else formed

    def settle(self, name: str) -> None:
        """Nothing is left to do: terms were added as they came."""

    def finish(self) -> dict[str, Tensor]:
        """[sample, entry] of each; zeros where no term came."""
        return {
            name: self._sums[name] if name in self._sums else _zeros(self._plan, self._n, prod(shape))
            for name, shape in self._plan.shapes.items()
        }


class ProjectingKeeper:
    """Kronecker: L G R' of each parameter. Global: these, q x q, added up over all parameters."""

    def __init__(self, plan: Plan, n: int) -> None:
        self._plan = plan
        self._n = n
        self._sums: dict[str, Tensor] = {}

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """The projected side."""
        return project(side, self._plan.map(name, axis), self._plan.dtype)

    def maps(self, name: str) -> Maps | None:
        """Those of the plan."""
        return self._plan.maps(name)

    def add(self, name: str, term: Term) -> None:
        """Project what is not yet, and sum over positions."""
        plan = self._plan
        if isinstance(term, Outer):
            rows, columns = self._once(name, term.rows, "rows"), self._once(name, term.columns, "columns")
            self._accumulate(name, form(Outer(rows, columns), slice(0, self._n)))
            return
        for some in _chunks(self._n, prod(plan.matrix(name))):
            self._accumulate(name, apply_maps(plan, name, form(term, some)), some)

    def settle(self, name: str) -> None:
        """Nothing is left to do: terms were added as they came."""

    def finish(self) -> dict[str, Tensor]:
        """[sample, feature] of each parameter, or of all together."""
        plan, keep = self._plan, self._plan.keep
        if isinstance(keep, Global):
            total = _zeros(plan, self._n, keep.dimension)
            for values in self._sums.values():
                total += values.flatten(1)
            return {"": total}
        return {
            name: self._sums[name].flatten(1)
            if name in self._sums
            else _zeros(plan, self._n, _width(plan, name))
            for name in plan.shapes
        }

    def _once(self, name: str, side: Side, axis: SideName) -> Side:
        done = isinstance(side, Dense) and side.projected
        return side if done else project(side, self._plan.map(name, axis), self._plan.dtype)

    def _accumulate(self, name: str, values: Tensor, some: slice | None = None) -> None:
        if some is not None and (some.start, some.stop) != (0, self._n):
            whole = self._sums.get(name)
            if whole is None:
                whole = self._sums[name] = values.new_zeros(self._n, *values.shape[1:])
            whole[some] += values
        else:
            self._sums[name] = self._sums[name].add_(values) if name in self._sums else values


class SketchKeeper:
    """A count sketch of all parameters in one vector; of outer products by the Fourier transforms of their sides' sketches.

    Pham, Pagh, KDD 2013: the sketch of an outer product is the circular convolution of the sketches of its sides.
    """

    def __init__(self, plan: Plan, n: int) -> None:
        self._plan = plan
        self._n = n
        self._size = plan.keep.dimension if isinstance(plan.keep, Sketch) else 0
        self._sum = _zeros(plan, n, self._size)

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """The side itself: its sketch has as many entries as the whole vector."""
        return side

    def maps(self, name: str) -> Maps | None:
        """Terms are wanted whole."""
        return None

    def add(self, name: str, term: Term) -> None:
        """Add a term's sketch, a few samples at a time."""
        plan = self._plan
        if isinstance(term, Outer):
            for some in _chunks(self._n, max(1, term.rows.positions) * self._size):
                self._sum[some] += self._outer(name, Outer(part(term.rows, some), part(term.columns, some)))
            return
        for some in _chunks(self._n, prod(plan.matrix(name))):
            self._sum[some] += self._formed(name, form(term, some))

    def settle(self, name: str) -> None:
        """Nothing is left to do: terms were added as they came."""

    def finish(self) -> dict[str, Tensor]:
        """[sample, dimension]"""
        return {"": self._sum}

    def _outer(self, name: str, term: Outer) -> Tensor:
        rows = torch.fft.rfft(self._side(term.rows, self._plan.places(name, "rows")), dim=2)
        columns = torch.fft.rfft(self._side(term.columns, self._plan.places(name, "columns")), dim=2)
        both: Tensor = torch.fft.irfft((rows * columns).sum(1), n=self._size, dim=1)
        return both

    def _side(self, side: Side, found: Places) -> Tensor:
        """[sample, position, dimension]"""
        if isinstance(side, Dense):
            values = side.values.to(self._plan.dtype)
            out = values.new_zeros(*values.shape[:2], self._size)
            return out.index_add_(2, found.place, values * found.sign)
        sign = found.sign[side.ids] if side.weight is None else found.sign[side.ids] * side.weight
        out = sign.new_zeros(*side.ids.shape, self._size)
        return out.scatter_(2, found.place[side.ids][:, :, None], sign[:, :, None])

    def _formed(self, name: str, values: Tensor) -> Tensor:
        rows = self._plan.places(name, "rows")
        if values.ndim == 2:
            place, sign = rows
        else:
            columns = self._plan.places(name, "columns")
            place = ((rows.place[:, None] + columns.place[None, :]) % self._size).flatten()
            sign = (rows.sign[:, None] * columns.sign[None, :]).flatten()
        flat = values.flatten(1).to(self._plan.dtype)
        return flat.new_zeros(len(flat), self._size).index_add_(1, place, flat * sign)


class GatheringKeeper:
    """Keeps the terms of each parameter until the end, for forms that no sum of terms gives."""

    def __init__(self, plan: Plan, n: int) -> None:
        self._plan = plan
        self._n = n
        self._terms: dict[str, list[Term]] = {}
        self._done: dict[str, Tensor] = {}

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """The side itself."""
        return side

    def maps(self, name: str) -> Maps | None:
        """Terms are wanted whole."""
        return None

    def add(self, name: str, term: Term) -> None:
        """Keep the term."""
        self._terms.setdefault(name, []).append(term)

    def settle(self, name: str) -> None:
        """Make what is kept, and let the terms go."""
        self._done[name] = self._make(name).to(self._plan.dtype)
        del self._terms[name]

    def _kept(self, name: str) -> Tensor:
        """[sample, feature] of a parameter; zeros where no term came."""
        if name in self._terms:
            self.settle(name)
        found = self._done.get(name)
        return _zeros(self._plan, self._n, self._width(name)) if found is None else found

    def _make(self, name: str) -> Tensor:
        """[sample, feature] from the terms."""
        raise NotImplementedError

    def _width(self, name: str) -> int:
        raise NotImplementedError

    def _formed(self, name: str, some: slice) -> Tensor:
        """[sample, row, column] or [sample, entry]: the gradient of some samples."""
        total = form(self._terms[name][0], some)
        for term in self._terms[name][1:]:
            total = total + form(term, some)
        return total


class NormKeeper(GatheringKeeper):
    """Norms; of outer products by whichever is cheaper, the products of their positions or the gradient itself."""

    def finish(self) -> dict[str, Tensor]:
        """[sample, parameter]"""
        columns = [self._kept(name) for name in self._plan.shapes]
        return {"": torch.cat(columns, 1)}

    def _make(self, name: str) -> Tensor:
        terms = self._terms[name]
        shape = self._plan.matrix(name)
        outers = [term for term in terms if isinstance(term, Outer)]
        pairs = [(a, b) for n, a in enumerate(outers) for b in outers[n:]]
        by_positions = sum(inner_cost(a, b) for a, b in pairs)
        if len(outers) < len(terms) or by_positions >= sum(form_cost(term, *shape) for term in outers):
            chunks = _chunks(self._n, prod(shape))
            norm = torch.cat(
                [torch.linalg.vector_norm(self._formed(name, some).flatten(1), dim=1) for some in chunks]
            )
        else:
            square = torch.stack([inner(a, b) * (1 if a is b else 2) for a, b in pairs]).sum(0)
            norm = square.clamp(min=0).sqrt()
        return norm[:, None]

    def _width(self, name: str) -> int:
        return 1


class FactorKeeper(GatheringKeeper):
    """The best approximation of rank c of each matrix, possibly after a projection of both sides."""

    def __init__(self, plan: Plan, n: int, keep: Factors) -> None:
        super().__init__(plan, n)
        self._rank = keep.rank

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """The projected side, where there is a projection."""
        found = self._plan.map(name, axis)
        return side if found is None else project(side, found, self._plan.dtype)

    def maps(self, name: str) -> Maps | None:
        """Those of the plan, where there is a projection."""
        return self._plan.maps(name)

    def add(self, name: str, term: Term) -> None:
        """Keep the term, projected."""
        plan = self._plan
        if isinstance(term, Outer):
            term = Outer(
                self._projected(name, term.rows, "rows"), self._projected(name, term.columns, "columns")
            )
        elif plan.map(name, "rows") is not None or plan.map(name, "columns") is not None:
            chunks = _chunks(self._n, prod(plan.matrix(name)))
            term = Values(torch.cat([apply_maps(plan, name, form(term, some)) for some in chunks]))
        super().add(name, term)

    def finish(self) -> dict[str, Tensor]:
        """[sample, rank x (rows + columns)] of matrices, [sample, entry] of vectors."""
        return {name: self._kept(name) for name in self._plan.shapes}

    def _width(self, name: str) -> int:
        sides = self._sides(name)
        return sides[0] if len(sides) == 1 else self._rank * sum(sides)

    def _sides(self, name: str) -> list[int]:
        keep = self._plan.keep
        dimension = keep.dimension if isinstance(keep, Factors) else None
        return [kept_axis(n, dimension) for n in self._plan.matrix(name)]

    def _projected(self, name: str, side: Side, axis: SideName) -> Side:
        found = self._plan.map(name, axis)
        if found is None or (isinstance(side, Dense) and side.projected):
            return side
        return project(side, found, self._plan.dtype)

    def _make(self, name: str) -> Tensor:
        if len(self._sides(name)) == 1:
            return self._formed(name, slice(0, self._n))
        return torch.cat([self._factors(name, slice(n, n + 1)) for n in range(self._n)])

    def _factors(self, name: str, some: slice) -> Tensor:
        """[1, rank x (rows + columns)] of one sample."""
        terms = [term for term in self._terms[name] if isinstance(term, Outer)]
        dense = len(terms) == len(self._terms[name]) and all(isinstance(s, Dense) for t in terms for s in t)
        if dense:
            rows = torch.cat([t.rows.values[some.start] for t in terms if isinstance(t.rows, Dense)]).double()
            columns = torch.cat(
                [t.columns.values[some.start] for t in terms if isinstance(t.columns, Dense)]
            ).double()
            if len(rows) < min(rows.shape[1], columns.shape[1]):
                return best_factors(rows, columns, self._rank)[None]
        whole = self._formed(name, some)[0].double()
        used = torch.nonzero(whole.abs().sum(1)).flatten()  # of an embedding, the words that occur
        return best_factors_of(whole, used, self._rank)[None]


def best_factors(rows: Tensor, columns: Tensor, rank: int) -> Tensor:
    """float64 [rank x (row + column)]: U sqrt(S), then V sqrt(S), of rows' columns, which is not formed.

    Args:
        rows: float64 [position, row].
        columns: float64 [position, column].
        rank: how many singular vectors.
    """
    q_rows, r_rows = torch.linalg.qr(rows.T)
    q_columns, r_columns = torch.linalg.qr(columns.T)
    u, s, vh = torch.linalg.svd(r_rows @ r_columns.T)
    return _packed(q_rows @ u, s, vh @ q_columns.T, rank)


def best_factors_of(matrix: Tensor, used: Tensor, rank: int) -> Tensor:
    """The same of a formed matrix, of which only some rows are not zero."""
    u, s, vh = torch.linalg.svd(matrix[used], full_matrices=False)
    whole = matrix.new_zeros(len(matrix), u.shape[1])
    whole[used] = u
    return _packed(whole, s, vh, rank)


def _packed(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Tensor:
    """The first singular pairs, the largest entry of each left vector positive; zeros where there are fewer."""
    k = min(rank, len(s))
    u, s, vh = u[:, :k], s[:k], vh[:k]
    largest = (
        u.abs() >= (1 - 1e-6) * u.abs().amax(0, keepdim=True) if k else u.abs() > 0
    )  # the first, among equals
    sign = torch.sign(u.gather(0, largest.to(torch.uint8).argmax(0, keepdim=True)))[0] if k else s
    root = s.sqrt() * torch.where(sign == 0, 1.0, sign)
    left, right = u.new_zeros(rank, len(u)), u.new_zeros(rank, vh.shape[1])
    left[:k], right[:k] = (u * root).T, vh * root[:, None]
    return torch.cat([left.flatten(), right.flatten()])


def project(side: Side, found: Tensor | None, dtype: torch.dtype) -> Side:
    """A side after its map; without one a dense side as it is."""
    if isinstance(side, Dense):
        values = side.values.to(dtype)
        return Dense(values if found is None else values @ found.T, projected=True)
    if found is None:
        return side
    picked = found.T[side.ids]
    return Dense(
        picked if side.weight is None else picked * side.weight[:, :, None].to(dtype), projected=True
    )


def apply_maps(plan: Plan, name: str, values: Tensor) -> Tensor:
    """L G R' of formed gradients [sample, row, column], or L g of vectors [sample, entry]."""
    rows, columns = plan.map(name, "rows"), plan.map(name, "columns")
    values = values.to(plan.dtype)
    if values.ndim == 2:
        values = values if rows is None else values @ rows.T
        return (
            values
            if columns is None or not isinstance(plan.keep, Global)
            else values[:, :, None] * columns[:, 0]
        )
    values = values if columns is None else values @ columns.T
    return values if rows is None else rows @ values


def part(side: Side, some: slice) -> Side:
    """Some samples of a side."""
    if isinstance(side, Dense):
        return Dense(side.values[some], side.projected)
    return Hot(side.ids[some], side.n, None if side.weight is None else side.weight[some])


def _chunks(n: int, entries: int) -> list[slice]:
    """Samples, so many at a time that no more than CHUNK entries are formed."""
    size = max(1, CHUNK // max(1, entries))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _width(plan: Plan, name: str) -> int:
    keep = plan.keep
    dimension = keep.dimension if isinstance(keep, Kronecker) else None
    return prod(kept_axis(n, dimension) for n in plan.matrix(name))


def _zeros(plan: Plan, n: int, width: int) -> Tensor:
    return torch.zeros(n, width, dtype=plan.dtype, device=plan.device)

"""The best approximation of low rank of each parameter's gradient."""

from math import prod

import torch
from torch import Tensor

from schemas.gradients import Factors
from tasks.extract.gradients.gathering_keepers import GatheringKeeper
from tasks.extract.gradients.plan import Maps, Plan, apply_maps, project
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.projections import kept_axis
from tasks.extract.gradients.terms import Dense, Outer, Side, Term, Values, chunks, form


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
            parts = chunks(self._n, prod(plan.matrix(name)))
            term = Values(torch.cat([apply_maps(plan, name, form(term, some)) for some in parts]))
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

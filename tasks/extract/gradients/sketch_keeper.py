"""The count sketch of all parameters together."""

from math import prod

import torch
from torch import Tensor

from schemas.gradients import Sketch
from tasks.extract.gradients.plan import Maps, Plan
from tasks.extract.gradients.projections import Places
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.terms import Dense, Outer, Side, Term, chunks, form, part


class SketchKeeper:
    """A count sketch of all parameters in one vector; of outer products by the Fourier transforms of their sides' sketches.

    Pham, Pagh, KDD 2013: the sketch of an outer product is the circular convolution of the sketches of its sides.
    """

    def __init__(self, plan: Plan, n: int) -> None:
        self._plan = plan
        self._n = n
        self._size = plan.keep.dimension if isinstance(plan.keep, Sketch) else 0
        self._sum = plan.zeros(n, self._size)

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
            for some in chunks(self._n, max(1, term.rows.positions) * self._size):
                self._sum[some] += self._outer(name, Outer(part(term.rows, some), part(term.columns, some)))
            return
        for some in chunks(self._n, prod(plan.matrix(name))):
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

"""Forms that are linear in each parameter's gradient: terms add up as they come, whole or after a projection of both sides."""

from math import prod

from torch import Tensor

from schemas.gradients import Global, Kronecker
from tasks.extract.gradients.plan import Maps, Plan, apply_maps, project
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.projections import kept_axis
from tasks.extract.gradients.terms import Dense, Outer, Side, Term, chunks, form


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
            name: self._sums[name] if name in self._sums else self._plan.zeros(self._n, prod(shape))
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
        for some in chunks(self._n, prod(plan.matrix(name))):
            self._accumulate(name, apply_maps(plan, name, form(term, some)), some)

    def settle(self, name: str) -> None:
        """Nothing is left to do: terms were added as they came."""

    def finish(self) -> dict[str, Tensor]:
        """[sample, feature] of each parameter, or of all together."""
        plan, keep = self._plan, self._plan.keep
        if isinstance(keep, Global):
            total = plan.zeros(self._n, keep.dimension)
            for values in self._sums.values():
                total += values.flatten(1)
            return {"": total}
        return {
            name: self._sums[name].flatten(1)
            if name in self._sums
            else plan.zeros(self._n, self._width(name))
            for name in plan.shapes
        }

    def _width(self, name: str) -> int:
        keep = self._plan.keep
        dimension = keep.dimension if isinstance(keep, Kronecker) else None
        return prod(kept_axis(n, dimension) for n in self._plan.matrix(name))

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

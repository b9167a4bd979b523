"""Forms that no sum of terms gives: the terms of a parameter are kept until the last has come. Norms are the simplest."""

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor

from tasks.extract.gradients.plan import Maps, Plan
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.terms import Outer, Side, Term, chunks, form, form_cost, inner, inner_cost


class GatheringKeeper(ABC):
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
        return self._plan.zeros(self._n, self._width(name)) if found is None else found

    @abstractmethod
    def _make(self, name: str) -> Tensor:
        """[sample, feature] from the terms."""

    @abstractmethod
    def _width(self, name: str) -> int:
        """Features of a parameter."""

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
            parts = chunks(self._n, prod(shape))
            norm = torch.cat(
                [torch.linalg.vector_norm(self._formed(name, some).flatten(1), dim=1) for some in parts]
            )
        else:
            square = torch.stack([inner(a, b) * (1 if a is b else 2) for a, b in pairs]).sum(0)
            norm = square.clamp(min=0).sqrt()
        return norm[:, None]

    def _width(self, name: str) -> int:
        return 1

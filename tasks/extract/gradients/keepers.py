"""Keepers: what becomes of each use's term as the backward brings it. One for each form in which gradients are kept."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from schemas.gradients import Exact, Global, Kronecker, Norms, Sketch
from tasks.extract.gradients.factor_keeper import FactorKeeper
from tasks.extract.gradients.gathering_keepers import NormKeeper
from tasks.extract.gradients.plan import Maps, Plan
from tasks.extract.gradients.projections import Side as SideName
from tasks.extract.gradients.sketch_keeper import SketchKeeper
from tasks.extract.gradients.summing_keepers import ExactKeeper, ProjectingKeeper
from tasks.extract.gradients.terms import Side, Term


@runtime_checkable
class Keeper(Protocol):
    """Takes the terms of a batch, and gives what is kept."""

    def hold(self, name: str, side: Side, axis: SideName) -> Side:
        """What is kept until the backward of a side that the forward knows: less than all of it, where that does."""

    def maps(self, name: str) -> Maps | None:
        """What a convolution's weight is projected by; None where terms are wanted whole."""

    def add(self, name: str, term: Term) -> None:
        """One use's term; sides that were held are given as `hold` returned them."""

    def settle(self, name: str) -> None:
        """All terms of a parameter have come."""

    def finish(self) -> dict[str, Tensor]:
        """Name to [sample, feature]; the name is empty for all parameters together."""


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

"""Per-sample gradients of parameters from one forward and one backward of a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.gradients import Keep
from tasks.extract.gradients.graph import Graph, backward
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.loop import Losses, checked, looped_gradients
from tasks.extract.gradients.plan import Plan
from tasks.extract.gradients.projections import Output, outputs
from tasks.extract.gradients.uses import Uses
from tasks.extract.hooks import refuse_compiled

__all__ = [
    "GradientPlan",
    "Losses",
    "Output",
    "Passed",
    "by_rules",
    "make_plan",
    "outputs",
    "sample_gradients",
]


class Gathered(NamedTuple):
    """What one batch gave."""

    values: dict[str, Tensor]
    """Name to [sample, feature]; the name is empty for all parameters together."""
    looped: tuple[str, ...]
    """Parameters that took a pass for each sample."""


@dataclass(frozen=True)
class GradientPlan:
    """What is kept of which parameters of a network, with its random maps."""

    parameters: dict[str, nn.Parameter]
    others: tuple[nn.Parameter, ...]
    plan: Plan
    looped: frozenset[str]
    open_all: bool

    def beside(self, chosen: Iterable[str]) -> list[nn.Parameter]:
        """All parameters but the chosen."""
        names = set(chosen)
        return [
            *self.others,
            *(parameter for name, parameter in self.parameters.items() if name not in names),
        ]


class Passed(NamedTuple):
    """What one forward and backward by the rules gave."""

    values: dict[str, Tensor]
    """Name to [sample, feature]."""
    refused: dict[str, str]
    """Parameters that the rules leave out, and why."""
    forms: list[tuple[str, str, str]]
    """How each parameter was used."""
    idle: frozenset[str]
    """Looped parameters that no loss of this batch depends on, so that their gradients are zero."""


def make_plan(
    module: nn.Module,
    names: Sequence[str],
    keep: Keep,
    seed: int,
    looped: frozenset[str] = frozenset(),
    entries: Literal["wanted", "all"] = "wanted",
) -> GradientPlan:
    """Plan gradients of a network; its random maps are drawn at first use, from seed and names alone.

    Args:
        module: the network.
        names: of its parameters, as `named_parameters` gives them.
        keep: the form.
        seed: of random maps.
        looped: parameters that take a pass for each sample.
        entries: where the graph of a forward begins: at the first use of a parameter that is wanted, or of any.
    """
    there = dict(module.named_parameters())
    chosen = {name: there[name] for name in names}
    first = next(iter(chosen.values()), next(iter(there.values()), None))
    device = torch.device("cpu") if first is None else first.device
    exact = first is not None and first.dtype == torch.float64
    shapes = {name: tuple(parameter.shape) for name, parameter in chosen.items()}
    plan = Plan(shapes, keep, seed, device, torch.float64 if exact else torch.float32)
    others = tuple(parameter for name, parameter in there.items() if name not in chosen)
    return GradientPlan(chosen, others, plan, looped & chosen.keys(), entries == "all")


def sample_gradients(module: nn.Module, losses: Losses, n: int, plan: GradientPlan) -> Gathered:
    """Gradients of each sample's loss, in the planned form.

    The network runs as it is; its flags, hooks and `.grad` are left as they were. Weights take part without their gradient, so that none is
    formed. Held until the backward: of each matrix its layer's input, after projection where the form has one; of norm layers their input;
    beside the graph of the forward. `exact` forms [sample, ...] of each parameter, no other form does.

    Args:
        module: the network, in evaluation mode.
        losses: runs it.
        n: samples of the batch.
        plan: made for this network.

    Raises:
        ModelError: if the network is compiled, the loss is not one number per sample, or the network wrote into what a layer had read.

    Cost: one forward, one backward without gradients of weights; a pass for each sample where parameters need it.
    """
    for path, part in module.named_modules():
        refuse_compiled(path, part)
    passed = by_rules(losses, n, plan, plan.looped)
    slow = (plan.looped | passed.refused.keys()) - passed.idle
    values = passed.values
    if slow:
        chosen = {name: plan.parameters[name] for name in plan.parameters if name in slow}
        for name, rows in looped_gradients(chosen, losses, n, plan.plan, plan.beside(chosen)).items():
            if name == "":
                values[""] = values[""] + rows
            elif name in slow:
                values[name] = rows
    return Gathered(values, tuple(name for name in plan.parameters if name in slow))


def by_rules(losses: Losses, n: int, plan: GradientPlan, looped: frozenset[str]) -> Passed:
    """One forward and one backward of a batch; what the rules refuse, and what is looped, is left out of the values.

    Looped parameters take part as they are, so that the graph tells whether any loss depends on them; it begins at the first use of any
    parameter, or a part that runs again in the backward would leave no trace in it.
    """
    keeper = make_keeper(plan.plan, n)
    names = {id(parameter): name for name, parameter in plan.parameters.items() if name not in looped}
    slow = {id(plan.parameters[name]): name for name in looped}
    uses = Uses(names, slow, map(id, plan.others), n, keeper, plan.open_all or bool(looped))
    graph = Graph((), False)
    with uses:
        found = checked(losses(None), n)
        known = len(uses.refused)
        if found.requires_grad:
            graph = backward(found.sum(), (*plan.parameters.values(), *plan.others))
            uses.refuse_unseen(graph.leaves)
    if (
        len(uses.refused) > known
    ):  # seen after terms had come: in a checkpoint that ran again, or by no operation at all
        again = by_rules(losses, n, plan, looped | uses.refused.keys())
        return again._replace(refused=uses.refused | again.refused)
    met = uses.hidden | {id(leaf) for leaf in graph.leaves}
    idle = () if graph.reentrant else (name for key, name in slow.items() if key not in met)
    return Passed(keeper.finish(), uses.refused, uses.forms, frozenset(idle))

"""Per-sample gradients of parameters from one forward and one backward of a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import SubspanError
from schemas.gradients import Keep, Kronecker
from tasks.extract.gradients.attribution import rows_stay
from tasks.extract.gradients.graph import backward, graph_of
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.loop import Losses, batch_gradients, checked, looped_gradients
from tasks.extract.gradients.plan import Plan
from tasks.extract.gradients.projections import Output, outputs
from tasks.extract.gradients.uses import Uses
from tasks.extract.gradients.weighted import adds_up, keeps_weights, sample_weights
from tasks.extract.hooks import refuse_compiled

__all__ = [
    "GradientPlan",
    "Losses",
    "Output",
    "Passed",
    "by_rules",
    "is_weighed",
    "make_plan",
    "outputs",
    "sample_gradients",
]


COMPARED = Kronecker(dimension=8, distribution="normal")
"""The form in which gradients are compared."""


class Gathered(NamedTuple):
    """What one batch gave."""

    values: dict[str, Tensor]
    """Name to [sample, feature]; the name is empty for all parameters together."""
    looped: tuple[str, ...]
    """Parameters that took a pass for each sample."""
    weighed: bool
    """Whether the graph did not tell that rows stay with their samples, so that losses were weighted: three passes more, or four."""


@dataclass(frozen=True)
class GradientPlan:
    """What is kept of which parameters of a network, with its random maps."""

    parameters: dict[str, nn.Parameter]
    others: tuple[nn.Parameter, ...]
    plan: Plan
    looped: frozenset[str]
    open_all: bool
    tried: Plan
    """A form in which gradients are compared."""

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
    stays: bool
    """Whether the graph, where it is looked at, tells that rows stay with their samples, see `rows_stay`."""


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
    dtype = torch.float64 if exact else torch.float32
    plan = Plan(shapes, keep, seed, device, dtype)
    tried = Plan(shapes, COMPARED, seed, device, dtype)
    others = tuple(parameter for name, parameter in there.items() if name not in chosen)
    slow = frozenset(looped & chosen.keys())
    return GradientPlan(chosen, others, plan, slow, entries == "all", tried)


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

    Cost: one forward, one backward without gradients of weights; three times more or more where the graph does not tell that rows stay
    with their samples (see `rows_astray`; once more where they do not); a pass for each sample where parameters need it.
    """
    for path, part in module.named_modules():
        refuse_compiled(path, part)
    passed, slow = by_rules(losses, n, plan, plan.looped, looked_at=n > 1), plan.looped
    weighed = n > 1 and not passed.stays
    if weighed:
        astray = rows_astray(losses, n, plan)
        if astray:
            slow |= astray
            passed = by_rules(losses, n, plan, slow)
    values, looped = _filled(passed, slow | passed.refused.keys(), losses, n, plan)
    return Gathered(values, looped, weighed)


def _filled(
    passed: Passed, slow: frozenset[str], losses: Losses, n: int, plan: GradientPlan
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """With the gradients that take a pass for each sample."""
    chosen = {name: plan.parameters[name] for name in plan.parameters if name in slow - passed.idle}
    values = passed.values
    if chosen:
        for name, rows in looped_gradients(chosen, losses, n, plan.plan, plan.beside(chosen)).items():
            if name == "":
                values[""] = values[""] + rows
            elif name in chosen:
                values[name] = rows
    return values, tuple(chosen)


def is_weighed(losses: Losses, n: int, plan: GradientPlan) -> bool:
    """Whether losses are weighted in a batch, see `Gathered.weighed`. Cost: a forward and a backward."""
    return n > 1 and not by_rules(losses, n, plan, plan.looped, looked_at=True).stays


def rows_astray(losses: Losses, n: int, plan: GradientPlan) -> frozenset[str]:
    """Parameters of which the rules are wrong in this batch.

    The gradient of a weighted loss is the weighted gradient, if rows belong to the samples they are counted to; and all rows add up to the
    gradient of the batch.

    Cost: two passes over the batch, one of them with gradients of weights, and one for each of `sample_weights`: one up to 41 samples, two
    up to 1,681; in float16 up to 7, 49, 343.
    """
    here, dtype = replace(plan, plan=plan.tried), computed_in(plan.parameters.values())
    plain = by_rules(losses, n, here, plan.looped).values
    trained = {name: parameter for name, parameter in plan.parameters.items() if parameter.requires_grad}
    exact = batch_gradients(trained, losses, n, plan.tried, plan.beside(trained))
    scale = sum(float(rows.double().square().sum()) for rows in plain.values()) ** 0.5
    found = {
        name for name in trained.keys() - plan.looped if not adds_up(plain[name], exact[name], scale, dtype)
    }
    for weights in sample_weights(n, dtype):
        scaled = by_rules(losses, n, here, plan.looped, weights).values
        found |= {name for name in plain if not keeps_weights(plain[name], scaled[name], weights, dtype)}
    return frozenset(found)


def computed_in(parameters: Iterable[Tensor]) -> torch.dtype:
    """The coarsest dtype that products with any of these parameters are computed in, here and now."""
    kinds = {
        torch.get_autocast_dtype(p.device.type) if torch.is_autocast_enabled(p.device.type) else p.dtype
        for p in parameters
    }
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def by_rules(
    losses: Losses,
    n: int,
    plan: GradientPlan,
    looped: frozenset[str],
    weights: Tensor | None = None,
    looked_at: bool = False,
) -> Passed:
    """One forward and one backward of a batch; what the rules refuse, and what is looped, is left out of the values.

    Looped parameters take part as they are, so that the graph tells whether any loss depends on them; it begins at the first use of any
    parameter, or a part that runs again in the backward would leave no trace in it.

    What a network does that differentiates itself may need the gradients that parameters are used without: where it raises, all parameters
    are refused.

    Args:
        losses: runs the network.
        n: samples of the batch.
        plan: made for this network.
        looped: parameters that are left out.
        weights: [sample], by which losses are multiplied.
        looked_at: whether the graph is to tell where rows belong.

    Cost: a forward and a backward; the same again if something is refused in the backward.
    """
    try:
        return _by_rules(losses, n, plan, looped, weights, looked_at)
    except (SubspanError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001  a network may do anything with its parameters
        return _as_it_is(losses, n, plan, looped, f"{type(error).__name__}: {error}")


def _as_it_is(losses: Losses, n: int, plan: GradientPlan, looped: frozenset[str], why: str) -> Passed:
    """A forward and a backward that leave the network alone, for those who watch it; `why` it cannot run otherwise."""
    total = checked(losses(None), n).sum()
    if total.requires_grad:
        backward(total, graph_of(total), (*plan.parameters.values(), *plan.others))
    reason = f"the network cannot run while its parameters take part without their gradient ({why})"
    refused = {name: reason for name in plan.parameters if name not in looped}
    return Passed(make_keeper(plan.plan, n).finish(), refused, [], frozenset(), stays=True)


def _by_rules(
    losses: Losses,
    n: int,
    plan: GradientPlan,
    looped: frozenset[str],
    weights: Tensor | None,
    looked_at: bool,
) -> Passed:
    keeper = make_keeper(plan.plan, n)
    names = {id(parameter): name for name, parameter in plan.parameters.items() if name not in looped}
    slow = {id(plan.parameters[name]): name for name in looped}
    others, opens = map(id, plan.others), plan.open_all or bool(looped)
    uses = Uses(names, slow, others, n, keeper, opens, follows=not plan.open_all)
    with uses:
        found = checked(losses(None), n)
        with torch._C.DisableTorchFunction():
            stays = looked_at and rows_stay(found, n, uses.ends)
            total = found.sum() if weights is None else (found * weights.to(found)).sum()
        graph, known, seen = graph_of(total), len(uses.refused), len(uses.forms)
        uses.in_backward, uses.runs_again = True, graph.reentrant
        if found.requires_grad:
            backward(total, graph, (*plan.parameters.values(), *plan.others))
            uses.refuse_unseen(graph)
    if (
        len(uses.refused) > known
    ):  # seen after terms had come: in a checkpoint that ran again, or by no operation at all
        again = by_rules(losses, n, plan, looped | uses.refused.keys(), weights, looked_at)
        return again._replace(refused=uses.refused | again.refused)
    met = uses.hidden | {id(leaf) for leaf in graph.leaves}
    idle = () if graph.reentrant or uses.cut else (name for key, name in slow.items() if key not in met)
    return Passed(
        keeper.finish(), uses.refused, uses.forms, frozenset(idle), stays and len(uses.forms) == seen
    )

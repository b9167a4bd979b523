"""Per-sample gradients of parameters from one forward and one backward of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.gradients import Keep, Kronecker
from tasks.extract.gradients.graph import backward
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.loop import Losses, checked, looped_gradients
from tasks.extract.gradients.plan import Plan
from tasks.extract.gradients.projections import Output, outputs
from tasks.extract.gradients.uses import Uses
from tasks.extract.hooks import refuse_compiled

__all__ = ["GradientPlan", "Losses", "Output", "make_plan", "needs_loop", "outputs", "sample_gradients"]

TOLERANCE = {torch.float64: (1e-8, 1e-12), torch.float32: (1e-3, 1e-5)}
"""Of a gradient against plain autograd, relative to itself and to the sample's whole gradient."""
COARSE = (5e-2, 1e-2)
"""The same for half precision, whose values depend on the batch."""


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


class _Passed(NamedTuple):
    values: dict[str, Tensor]
    refused: dict[str, str]
    forms: list[tuple[str, str, str]]


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
    passed = _pass(losses, n, plan, plan.looped)
    slow = plan.looped | passed.refused.keys()
    values = passed.values
    if slow:
        chosen = {name: plan.parameters[name] for name in plan.parameters if name in slow}
        for name, rows in looped_gradients(chosen, losses, n, plan.plan).items():
            if name == "":
                values[""] = values[""] + rows
            elif name in slow:
                values[name] = rows
    return Gathered(values, tuple(name for name in plan.parameters if name in slow))


def needs_loop(
    module: nn.Module, probes: Sequence[tuple[Losses, int]], names: Sequence[str]
) -> dict[str, str]:
    """Parameters whose gradients need a pass for each sample, and why, measured against plain autograd of each sample alone.

    Args:
        module: the network.
        probes: batches that differ in their number of samples, with how many they hold.
        names: of parameters.

    Cost: for each sample of the probes a forward and a backward, and one for each probe; memory of the gradients of one sample.
    """
    plan = make_plan(module, names, Kronecker(dimension=8, distribution="normal"), 0)
    found: dict[str, str] = {}
    forms = []
    moved: set[str] = set()
    for losses, n in probes:
        passed = _pass(losses, n, plan, frozenset())
        found = passed.refused | found
        exact = looped_gradients(plan.parameters, losses, n, plan.plan)
        dtype = _computed(next(iter(plan.parameters.values())))
        found = _disagreeing(passed.values, exact, dtype) | found
        moved |= {name for name, rows in exact.items() if bool(rows.any())}
        forms.append(passed.forms)
    for name in _unsteady(forms):
        found.setdefault(name, "how it is used depends on the batch")
    used = {name for form in forms for _, name, _ in form}
    for name in plan.parameters:
        if name not in used:
            found.setdefault(name, "no sample of the plan used it, so that nothing tells how it is used")
        elif name not in moved:
            found.setdefault(
                name,
                "its gradient is zero for the samples of the plan, so that nothing tells whether a rule is right",
            )
    return {name: found[name] for name in plan.parameters if name in found}


def _pass(losses: Losses, n: int, plan: GradientPlan, looped: frozenset[str]) -> _Passed:
    """One forward and backward by the rules; what they refuse is left out of the values."""
    keeper = make_keeper(plan.plan, n)
    names = {id(parameter): name for name, parameter in plan.parameters.items() if name not in looped}
    others = {id(p) for p in plan.others} | {id(plan.parameters[name]) for name in looped}
    uses = Uses(names, others, n, keeper, plan.open_all)
    with uses:
        found = checked(losses(None), n)
        known = len(uses.refused)
        if found.requires_grad:
            graph = backward(found.sum(), (*plan.parameters.values(), *plan.others))
            uses.refuse_unseen(graph.leaves)
    if (
        len(uses.refused) > known
    ):  # seen after terms had come: in a checkpoint that ran again, or by no operation at all
        again = _pass(losses, n, plan, looped | uses.refused.keys())
        return again._replace(refused=uses.refused | again.refused)
    return _Passed(keeper.finish(), uses.refused, uses.forms)


def _computed(parameter: Tensor) -> torch.dtype:
    """What products with a parameter are computed in, here and now."""
    kind = parameter.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype


def _disagreeing(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, str]:
    own, whole = TOLERANCE.get(dtype, COARSE)
    total = torch.stack([rows.double().square().sum(1) for rows in exact.values()]).sum(0).sqrt()
    refused = {}
    for name, rows in exact.items():
        error = torch.linalg.vector_norm((found[name] - rows).double(), dim=1)
        norm = torch.linalg.vector_norm(rows.double(), dim=1)
        if bool((error > own * norm + whole * total).any()):
            worst = float((error / norm.clamp(min=1e-30)).max())
            refused[name] = (
                f"the fast way is off by {worst:.1g} of the gradient: samples are not the first axis where it is used, or meet there"
            )
    return refused


def _unsteady(forms: Sequence[list[tuple[str, str, str]]]) -> set[str]:
    """Parameters that two probes use in different ways."""
    by_name = [{name: [f for f in form if f[1] == name] for _, name, _ in form} for form in forms]
    every = {name for one in by_name for name in one}
    return {name for name in every if any(one.get(name) != by_name[0].get(name) for one in by_name)}

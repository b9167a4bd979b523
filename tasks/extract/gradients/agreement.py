"""Which parameters the rules are right about, measured against plain autograd of each sample alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import SubspanError
from schemas.gradients import Kronecker
from tasks.extract.gradients.loop import Losses, looped_gradients
from tasks.extract.gradients.sample_gradients import GradientPlan, by_rules, make_plan

TOLERANCE = {torch.float64: (1e-8, 1e-12), torch.float32: (1e-3, 1e-5)}
"""Of a gradient against plain autograd, relative to itself and to the sample's whole gradient."""
COARSE = (5e-2, 1e-2)
"""The same for half precision, whose values depend on the batch."""
UNTOLD = 0.3
"""Relative error that half precision does not excuse, where nothing more exact can be had."""


class Probe(NamedTuple):
    """A batch through which a network can be sent."""

    losses: Losses
    n: int
    """Samples."""


class Exactly(NamedTuple):
    """The network with every number in float64, and a batch of it."""

    module: nn.Module
    probe: Probe


class _Verdict(NamedTuple):
    refused: dict[str, str]
    doubtful: dict[str, float]
    """Whose error is large against their own gradient, and as small as rounding may be against the sample's: name to the first."""
    moved: set[str]
    """With a gradient that is not zero."""
    forms: list[tuple[str, str, str]]


def needs_loop(
    module: nn.Module,
    probes: Sequence[Probe],
    names: Sequence[str],
    exactly: Callable[[], Exactly] | None = None,
) -> dict[str, str]:
    """Parameters whose gradients need a pass for each sample, and why.

    A gradient that is small against the sample's whole one may differ by rounding alone (those of an attention's key biases are nothing
    but rounding), or because a rule is wrong: what the network's precision cannot tell is measured again in float64.

    Args:
        module: the network.
        probes: batches that differ in their number of samples.
        names: of parameters.
        exactly: makes a copy in float64, for the doubtful; None, or a copy that raises, leaves them to a pass for each sample: all of
            them in float32, those off by more than 0.3 of themselves in half precision.

    Cost: for each sample of the probes a forward and a backward, and one for each probe; memory of the gradients of one sample. In doubt
    also those of one probe in float64, and memory of the copy.
    """
    plan = _plan(module, names)
    dtype = computed_in(next(iter(plan.parameters.values())))
    verdicts = [_judge(plan, probe, dtype) for probe in probes]
    found: dict[str, str] = {}
    for verdict in verdicts:
        found = verdict.refused | found
    doubtful = {
        name: error for verdict in verdicts for name, error in verdict.doubtful.items() if name not in found
    }
    found |= _settled(doubtful, names, exactly, dtype)
    for name in _unsteady([verdict.forms for verdict in verdicts]):
        found.setdefault(name, "how it is used depends on the batch")
    for name, why in _unseen(plan, verdicts).items():
        found.setdefault(name, why)
    return {name: found[name] for name in plan.parameters if name in found}


def computed_in(parameter: Tensor) -> torch.dtype:
    """What products with a parameter are computed in, here and now."""
    kind = parameter.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype


def largest_error(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """How far gradients lie from exact ones, by norm, at worst over samples and parameters.

    Relative to a parameter's own gradient, or where that is smaller, to the part of the sample's whole gradient below which its own is
    nothing but rounding: 1e-2 in float32, 1e-4 in float64, 0.2 in half precision.

    Args:
        found: name to [sample, feature].
        exact: the same, of plain autograd.
        dtype: what the network computes in.
    """
    own, whole = TOLERANCE.get(dtype, COARSE)
    least = (_whole(exact) * whole / own).clamp(min=torch.finfo(torch.float64).tiny)
    errors = [
        torch.linalg.vector_norm((found[name] - rows).double(), dim=1)
        / torch.linalg.vector_norm(rows.double(), dim=1).maximum(least)
        for name, rows in exact.items()
    ]
    return float(torch.stack(errors).max())


def _whole(exact: Mapping[str, Tensor]) -> Tensor:
    """float64 [sample]: norms of the gradients of all parameters together."""
    return torch.stack([rows.double().square().sum(1) for rows in exact.values()]).sum(0).sqrt()


def _plan(module: nn.Module, names: Sequence[str]) -> GradientPlan:
    return make_plan(module, names, Kronecker(dimension=8, distribution="normal"), 0)


def _judge(plan: GradientPlan, probe: Probe, dtype: torch.dtype) -> _Verdict:
    passed = by_rules(probe.losses, probe.n, plan, frozenset())
    exact = looped_gradients(plan.parameters, probe.losses, probe.n, plan.plan)
    own, whole = TOLERANCE.get(dtype, COARSE)
    total = _whole(exact)
    refused, doubtful = {}, {}
    for name, rows in exact.items():
        error = torch.linalg.vector_norm((passed.values[name] - rows).double(), dim=1)
        norm = torch.linalg.vector_norm(rows.double(), dim=1)
        worst = float((error / norm.clamp(min=1e-30)).max())
        if bool((error > own * norm + whole * total).any()):
            refused[name] = _off(worst)
        elif bool((error > own * norm).any()):
            doubtful[name] = worst
    moved = {name for name, rows in exact.items() if bool(rows.any())}
    return _Verdict(refused | passed.refused, doubtful, moved, passed.forms)


def _off(worst: float) -> str:
    return f"the fast way is off by {worst:.1g} of the gradient: samples are not the first axis where it is used, or meet there"


def _settled(
    doubtful: Mapping[str, float],
    names: Sequence[str],
    exactly: Callable[[], Exactly] | None,
    dtype: torch.dtype,
) -> dict[str, str]:
    """Of the doubtful those whose rule is wrong, or for which nothing can tell."""
    if not doubtful or dtype == torch.float64:
        return {}
    why = "nothing more exact is at hand"
    if exactly is not None:
        try:
            module, probe = exactly()
            refused = _judge(_plan(module, names), probe, torch.float64).refused
        except SubspanError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001  a network may do anything with float64
            why = f"in float64 the network raised {type(error).__name__}: {error}"
        else:
            return {name: refused[name] for name in doubtful if name in refused}
    return {
        name: f"the fast way is off by {error:.1g} of a gradient that is too small for {dtype} to tell why ({why})"
        for name, error in doubtful.items()
        if dtype in TOLERANCE or error > UNTOLD
    }


def _unsteady(forms: Sequence[list[tuple[str, str, str]]]) -> set[str]:
    """Parameters that two probes use in different ways."""
    by_name = [{name: [f for f in form if f[1] == name] for _, name, _ in form} for form in forms]
    every = {name for one in by_name for name in one}
    return {name for name in every if any(one.get(name) != by_name[0].get(name) for one in by_name)}


def _unseen(plan: GradientPlan, verdicts: Sequence[_Verdict]) -> dict[str, str]:
    """Parameters about which the probes say nothing."""
    used = {name for verdict in verdicts for _, name, _ in verdict.forms}
    moved = {name for verdict in verdicts for name in verdict.moved}
    unused = "no sample of the plan used it, so that nothing tells how it is used"
    still = "its gradient is zero for the samples of the plan, so that nothing tells whether a rule is right"
    return {
        name: still if name in used else unused
        for name in plan.parameters
        if name not in used or name not in moved
    }

"""Which parameters the rules are right about, measured against plain autograd of each sample alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import SubspanError
from tasks.extract.gradients.by_rules import Passed, by_rules
from tasks.extract.gradients.gradient_plan import COMPARED, GradientPlan, computed_in, make_plan
from tasks.extract.gradients.loop import Losses, looped_gradients, split_gradients

TOLERANCE = {torch.float64: (1e-8, 1e-12), torch.float32: (1e-4, 1e-5)}
"""Of a gradient against plain autograd, relative to itself and to the sample's whole gradient."""
COARSE = (5e-2, 1e-2)
"""The same for half precision, whose values depend on the batch."""
FLOOR = {torch.float64: 1e-4, torch.float32: 1e-2}
COARSE_FLOOR = 0.2
"""Part of a sample's whole gradient to which errors of smaller ones are compared, by dtype; and in half precision."""
UNTOLD = 0.3
"""Relative error that half precision does not excuse, where nothing more exact can be had."""
ROUNDING = 8
"""An error is rounding if it is no larger than this many times what another way to the same gradient differs by."""
VANISHED = 1e-4
"""A gradient was rounding if so little of it is left in float64."""
SMALLEST = 1e-15
"""Part of a sample's whole gradient that float64 itself cannot tell from rounding."""


class Probe(NamedTuple):
    """A batch through which a network can be sent."""

    losses: Losses
    n: int
    """Samples."""


class Exactly(NamedTuple):
    """The network with every number in float64, and the batches."""

    module: nn.Module
    probes: Sequence[Probe]


class _Verdict(NamedTuple):
    """About the parameters of a network, from one batch."""

    passed: Passed
    exact: dict[str, Tensor]
    refused: dict[str, str]
    doubtful: dict[str, float]
    """Whose error is large against their own gradient, and as small as rounding may be against the sample's: name to the first."""

    @property
    def moved(self) -> set[str]:
        """With a gradient that is not zero."""
        return {name for name, rows in self.exact.items() if bool(_finite(rows).any())}


def needs_loop(
    module: nn.Module,
    probes: Sequence[Probe],
    names: Sequence[str],
    exactly: Callable[[], Exactly] | None = None,
    entries: Literal["wanted", "all"] = "wanted",
) -> dict[str, str]:
    """Parameters whose gradients need a pass for each sample, and why.

    A gradient that is small against the sample's whole one may differ by rounding alone (those of an attention's key biases are nothing
    but rounding), or because a rule is wrong: what the network's precision cannot tell is measured again in float64. What becomes nothing
    there was rounding; so is what plain autograd differs from itself by, when it takes a sample alone or out of its batch.

    Args:
        module: the network.
        probes: batches that differ in their number of samples.
        names: of parameters.
        exactly: makes a copy in float64, for the doubtful; None, or a copy that raises, leaves them to a pass for each sample: all of
            them in float32, those off by more than 0.3 of themselves in half precision.
        entries: see `make_plan`; as units will have it.

    Cost: for each sample of the probes a forward and a backward, and one for each probe; memory of the gradients of one sample. In doubt,
    as in half precision, twice that in float64, and memory of the copy.
    """
    plan = make_plan(module, names, COMPARED, 0, entries=entries)
    dtype = computed_in(plan.parameters.values())
    verdicts = [_judge(plan, probe, dtype) for probe in probes]
    found = _merged(verdict.refused for verdict in verdicts)
    doubtful = {
        name: error for verdict in verdicts for name, error in verdict.doubtful.items() if name not in found
    }
    if doubtful:
        found |= _settled(plan, doubtful, verdicts, probes, exactly, dtype)
    for name in _unsteady([verdict.passed.forms for verdict in verdicts]):
        found.setdefault(name, "how it is used depends on the batch")
    for name, why in _unseen(plan, verdicts).items():
        found.setdefault(name, why)
    return {name: found[name] for name in plan.parameters if name in found}


def largest_error(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """How far gradients lie from exact ones, by norm, at worst over samples and parameters.

    Relative to a parameter's own gradient, or where that is smaller, to the part of the sample's whole gradient below which its own may be
    nothing but rounding: 1e-2 in float32, 1e-4 in float64, 0.2 in half precision. 1 where all should be zero and some is not.

    Args:
        found: name to [sample, feature].
        exact: the same, of plain autograd.
        dtype: what the network computes in.
    """
    least = _whole(exact) * FLOOR.get(dtype, COARSE_FLOOR)
    errors = {name: _norm(found[name] - rows) for name, rows in exact.items()}
    against = {name: _norm(rows).maximum(least) for name, rows in exact.items()}
    ratios = [
        error / against[name].where(against[name] > 0, error.where(error > 0, 1.0))
        for name, error in errors.items()
    ]
    return float(torch.stack(ratios).max())


def _norm(rows: Tensor) -> Tensor:
    """float64 [sample]."""
    norm: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
    return norm


def _whole(exact: Mapping[str, Tensor]) -> Tensor:
    """float64 [sample]: norms of the gradients of all parameters together, but for those that are not finite."""
    return torch.stack([_finite(_norm(rows)).square() for rows in exact.values()]).sum(0).sqrt()


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _judge(plan: GradientPlan, probe: Probe, dtype: torch.dtype) -> _Verdict:
    passed = by_rules(probe.losses, probe.n, plan, frozenset())
    exact = looped_gradients(plan.parameters, probe.losses, probe.n, plan.plan, plan.others)
    own, whole = TOLERANCE.get(dtype, COARSE)
    surely = own if dtype in TOLERANCE else 0.0  # half precision tells no small error from rounding
    total = _whole(exact)
    refused, doubtful = {}, {}
    for name, rows in exact.items():
        known = _norm(rows).isfinite()  # others have no gradient, whichever way
        error, norm = _norm(passed.values[name] - rows)[known], _norm(rows)[known]
        if not len(error):
            refused[name] = (
                "it has no finite gradient for the samples of the plan, so that nothing tells whether a rule is right"
            )
            continue
        worst = float((error / norm.clamp(min=1e-30)).max())
        if not bool((error <= own * norm + whole * total[known]).all()):
            refused[name] = _off(worst)
        elif bool((error > surely * norm).any()):
            doubtful[name] = worst
    return _Verdict(passed, exact, refused | passed.refused, doubtful)


def _off(worst: float) -> str:
    return f"the fast way is off by {worst:.1g} of the gradient: samples are not the first axis where it is used, or meet there"


def _settled(
    plan: GradientPlan,
    doubtful: Mapping[str, float],
    verdicts: Sequence[_Verdict],
    probes: Sequence[Probe],
    exactly: Callable[[], Exactly] | None,
    dtype: torch.dtype,
) -> dict[str, str]:
    """Of the doubtful those whose rule is wrong, or for which nothing can tell."""
    why = "nothing more exact is at hand"
    if dtype == torch.float64:
        pairs = zip(verdicts, probes, strict=True)
        return _merged(_beyond_rounding(plan, verdict, probe, doubtful, None) for verdict, probe in pairs)
    if exactly is not None:
        try:
            return _in_float64(exactly(), doubtful, verdicts)
        except SubspanError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001  a network may do anything with float64
            why = f"in float64 the network raised {type(error).__name__}: {error}"
    return {
        name: f"the fast way is off by {error:.1g} of a gradient that is too small for {dtype} to tell why ({why})"
        for name, error in doubtful.items()
        if dtype in TOLERANCE or error > UNTOLD
    }


def _in_float64(
    copied: Exactly, doubtful: Mapping[str, float], verdicts: Sequence[_Verdict]
) -> dict[str, str]:
    """What a copy says of the doubtful; nothing of what it does not use as the network itself does."""
    plan = make_plan(copied.module, list(doubtful), COMPARED, 0)
    found = []
    for probe, native in zip(copied.probes, verdicts, strict=True):
        verdict = _judge(plan, probe, torch.float64)
        other = {
            name for name in doubtful if _uses(verdict.passed.forms, name) != _uses(native.passed.forms, name)
        }
        untold = dict.fromkeys(other, "a copy of the network in float64 does not use it as the network does")
        found += [untold, _beyond_rounding(plan, verdict, probe, doubtful, native), verdict.passed.refused]
    return _merged(found)


def _beyond_rounding(
    plan: GradientPlan, verdict: _Verdict, probe: Probe, among: Iterable[str], coarse: _Verdict | None
) -> dict[str, str]:
    """Parameters whose error in float64 is no rounding.

    Args:
        plan: of the network in float64.
        verdict: about it.
        probe: its batch.
        among: names.
        coarse: about the network in its own precision, in which rounding is far larger; None: what is below 1e-15 of the whole counts as
            rounding.
    """
    errors = {name: _norm(verdict.passed.values[name] - verdict.exact[name]) for name in among}
    own, _ = TOLERANCE[torch.float64]
    known = {name: _norm(verdict.exact[name]).isfinite() for name in errors}
    names = [
        name
        for name, error in errors.items()
        if bool((error > own * _norm(verdict.exact[name]))[known[name]].any())
    ]
    if not names:
        return {}
    chosen = {name: plan.parameters[name] for name in names}
    again = split_gradients(chosen, probe.losses, probe.n, plan.plan, plan.beside(chosen))
    found = {}
    for name in names:
        rows, error = verdict.exact[name], errors[name]
        allowed = own * _norm(rows) + ROUNDING * _norm(again[name] - rows)
        if coarse is None:
            excused = error <= allowed + SMALLEST * _whole(verdict.exact)
        else:
            excused = (error <= allowed) | (_norm(rows) <= VANISHED * _norm(coarse.exact[name]))
        if not bool(excused[known[name]].all()):
            found[name] = _off(float((error / _norm(rows).clamp(min=1e-300))[known[name]].max()))
    return found


def _merged(some: Iterable[dict[str, str]]) -> dict[str, str]:
    """Everything that is in one; the first of equal names."""
    found: dict[str, str] = {}
    for one in some:
        found = one | found
    return found


def _uses(forms: Sequence[tuple[str, str, str]], name: str) -> list[tuple[str, str, str]]:
    return [form for form in forms if form[1] == name]


def _unsteady(forms: Sequence[list[tuple[str, str, str]]]) -> set[str]:
    """Parameters that two probes use in different ways, however often (longer texts take more steps)."""
    every = {name for form in forms for _, name, _ in form}
    ways = [{name: set(_uses(form, name)) for name in every} for form in forms]
    return {name for name in every if any(way[name] != ways[0][name] for way in ways)}


def _unseen(plan: GradientPlan, verdicts: Sequence[_Verdict]) -> dict[str, str]:
    """Parameters about which the probes say nothing."""
    used = {name for verdict in verdicts for _, name, _ in verdict.passed.forms}
    moved = {name for verdict in verdicts for name in verdict.moved}
    unused = "no sample of the plan used it, so that nothing tells how it is used"
    still = "its gradient is zero for the samples of the plan, so that nothing tells whether a rule is right"
    return {
        name: still if name in used else unused
        for name in plan.parameters
        if name not in used or name not in moved
    }

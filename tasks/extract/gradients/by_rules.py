"""One forward and one backward of a batch by rules, and what to do with networks that cannot run so."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import SubspanError
from tasks.extract.gradients.attribution import rows_stay
from tasks.extract.gradients.gradient_plan import GradientPlan
from tasks.extract.gradients.graph import DifferentiatesItself, backward, graph_of, refuse_kept
from tasks.extract.gradients.keepers import make_keeper
from tasks.extract.gradients.loop import Losses, checked
from tasks.extract.gradients.standing import Standing
from tasks.extract.gradients.uses import Uses

DIFFERENTIATES = "it differentiates itself in its forward"
"""Why a network runs as it is."""


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


def by_rules(
    losses: Losses,
    n: int,
    plan: GradientPlan,
    looped: frozenset[str],
    weights: Tensor | None = None,
    looked_at: bool = False,
    restart: Callable[[], None] | None = None,
) -> Passed:
    """One forward and one backward of a batch; what the rules refuse, and what is looped, is left out of the values.

    Looped parameters take part as they are, so that the graph tells whether any loss depends on them; it begins at the first use of any
    parameter, or a part that runs again in the backward would leave no trace in it.

    A network that differentiates itself in its forward needs the gradients that parameters are used without: all parameters are refused,
    and if anybody watches it runs as it is. So where it raises.

    Args:
        losses: runs the network.
        n: samples of the batch.
        plan: made for this network.
        looped: parameters that are left out.
        weights: [sample], by which losses are multiplied.
        looked_at: whether the graph is to tell where rows belong.
        restart: called before the network runs as it is, for somebody who watches it; None: nobody does.

    Raises:
        ModelError: if it turns out that the network must run as it is when it has written into its parameters or changed its hooks.

    Cost: a forward and a backward; the same again if something is refused in the backward, or the network runs as it is, then with the
    gradients of all weights for the batch.
    """
    if plan.as_it_is:
        return _as_it_is(losses, n, plan, looped, DIFFERENTIATES, restart)
    standing = Standing(plan.module, (*plan.parameters.values(), *plan.others))
    uses = _uses(n, plan, looped)
    try:
        return _by_rules(losses, n, plan, looped, weights, looked_at, uses)
    except (SubspanError, MemoryError, OSError, torch.OutOfMemoryError):
        raise
    except DifferentiatesItself:
        why = DIFFERENTIATES
    except Exception as error:  # a network may do anything with its parameters
        if "DefaultCPUAllocator" in str(error):
            raise
        why = f"{type(error).__name__}: {error}"
    standing.restore(why, uses.is_written_through_data)
    return _as_it_is(losses, n, plan, looped, why, restart)


def _as_it_is(
    losses: Losses,
    n: int,
    plan: GradientPlan,
    looped: frozenset[str],
    why: str,
    restart: Callable[[], None] | None,
) -> Passed:
    """Nothing of any parameter; and a forward and a backward that leave the network alone, if somebody watches."""
    if restart is not None:
        restart()
        total = checked(losses(None), n).sum()
        graph = graph_of(total)
        refuse_kept(graph)
        if total.requires_grad:
            backward(total, graph, (*plan.parameters.values(), *plan.others))
    reason = f"the network cannot run by rules, in which parameters take part without their gradient: {why}"
    refused = {name: reason for name in plan.parameters if name not in looped}
    return Passed(make_keeper(plan.plan, n).finish(), refused, [], frozenset(), stays=True)


def _uses(n: int, plan: GradientPlan, looped: frozenset[str]) -> Uses:
    keeper = make_keeper(plan.plan, n)
    names = {id(parameter): name for name, parameter in plan.parameters.items() if name not in looped}
    slow = {id(plan.parameters[name]): name for name in looped}
    others, opens = map(id, plan.others), plan.open_all or bool(looped)
    size = sum(parameter.numel() for parameter in (*plan.parameters.values(), *plan.others))
    return Uses(names, slow, others, n, keeper, opens, follows=not plan.open_all, size=size)


def _by_rules(
    losses: Losses,
    n: int,
    plan: GradientPlan,
    looped: frozenset[str],
    weights: Tensor | None,
    looked_at: bool,
    uses: Uses,
) -> Passed:
    slow = {id(plan.parameters[name]): name for name in looped}
    with uses:
        found = checked(losses(None), n)
        if uses.differentiates:  # and swallowed what it was told
            raise DifferentiatesItself
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
    ):  # after terms had come: in a checkpoint that ran again, or by no operation at all
        again = by_rules(losses, n, plan, looped | uses.refused.keys(), weights, looked_at)
        return again._replace(refused=uses.refused | again.refused)
    met = uses.hidden | {id(leaf) for leaf in graph.leaves}
    idle = () if graph.reentrant or uses.cut else (name for key, name in slow.items() if key not in met)
    return Passed(
        uses.keeper.finish(), uses.refused, uses.forms, frozenset(idle), stays and len(uses.forms) == seen
    )

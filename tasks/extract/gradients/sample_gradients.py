"""Per-sample gradients of parameters from one forward and one backward of a batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from tasks.extract.gradients.by_rules import Passed, by_rules
from tasks.extract.gradients.gradient_plan import GradientPlan, computed_in
from tasks.extract.gradients.loop import Losses, batch_gradients, looped_gradients
from tasks.extract.gradients.weighted import adds_up, keeps_weights, sample_weights
from tasks.extract.hooks import refuse_compiled


class Gathered(NamedTuple):
    """What one batch gave."""

    values: dict[str, Tensor]
    """Name to [sample, feature]; the name is empty for all parameters together."""
    looped: tuple[str, ...]
    """Parameters that took a pass for each sample."""
    weighed: bool
    """Whether the graph did not tell that rows stay with their samples, so that losses were weighted: see `rows_astray`."""


def sample_gradients(
    module: nn.Module,
    losses: Losses,
    n: int,
    plan: GradientPlan,
    restart: Callable[[], None] | None = None,
) -> Gathered:
    """Gradients of each sample's loss, in the planned form.

    The network runs as it is; flags, hooks and `.grad` are left as they were, but for what it writes itself. Weights take part without
    their gradient, so that none is formed. Held until the backward: of each matrix its layer's input, after projection where the form has
    one; of norm layers their input; beside the graph of the forward. `exact` forms [sample, ...] of each parameter, no other form does.

    Args:
        module: the network, in evaluation mode.
        losses: runs it.
        n: samples of the batch.
        plan: made for this network.
        restart: for somebody who watches the passes over the batch; called before the network runs as it is, for want of rules.

    Raises:
        ModelError: if the network is compiled, the loss is not one number per sample, or the network wrote into what a layer had read.

    Cost: one forward, one backward without gradients of weights; the passes of `rows_astray` more where the graph does not tell that rows
    stay with their samples, and one more where they do not; a pass for each sample where parameters need it. A network that cannot run by
    rules costs the pass that is broken off, where the plan does not know, and one as it is where somebody watches.
    """
    for path, part in module.named_modules():
        refuse_compiled(path, part)
    passed, slow = by_rules(losses, n, plan, plan.looped, looked_at=n > 1, restart=restart), plan.looped
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

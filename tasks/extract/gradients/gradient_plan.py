"""What a capture keeps of the gradients of a network's parameters, and what of them takes the slow way."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from schemas.gradients import Keep, Kronecker
from tasks.extract.gradients.plan import Plan

COMPARED = Kronecker(dimension=8, distribution="normal")
"""The form in which gradients are compared."""


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
    module: nn.Module
    as_it_is: bool
    """Whether the network is known to differentiate itself, so that no rule is tried."""

    def beside(self, chosen: Iterable[str]) -> list[nn.Parameter]:
        """All parameters but the chosen."""
        names = set(chosen)
        return [
            *self.others,
            *(parameter for name, parameter in self.parameters.items() if name not in names),
        ]


def make_plan(
    module: nn.Module,
    names: Sequence[str],
    keep: Keep,
    seed: int,
    looped: frozenset[str] = frozenset(),
    entries: Literal["wanted", "all"] = "wanted",
    as_it_is: bool = False,
) -> GradientPlan:
    """Plan gradients of a network; its random maps are drawn at first use, from seed and names alone.

    Args:
        module: the network.
        names: of its parameters, as `named_parameters` gives them.
        keep: the form.
        seed: of random maps.
        looped: parameters that take a pass for each sample.
        entries: where the graph of a forward begins: at the first use of a parameter that is wanted, or of any. If of any, the graph is the
            network's own throughout, for gradients at sites, and what the network makes of parameters alone has no rule.
        as_it_is: whether the network is known to differentiate itself in its forward.
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
    return GradientPlan(chosen, others, plan, slow, entries == "all", tried, module, as_it_is)


def computed_in(parameters: Iterable[Tensor]) -> torch.dtype:
    """The coarsest dtype that products with any of these parameters are computed in, here and now."""
    kinds = {
        torch.get_autocast_dtype(p.device.type) if torch.is_autocast_enabled(p.device.type) else p.dtype
        for p in parameters
    }
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)

"""The backward part of a unit: what its batches are sent through, and how exact that was."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from schemas.capture import CaptureSpec
from schemas.errors import DataError
from schemas.layout import GradientLayout, SiteLayout, Space
from tasks.extract.backward import Backward, activations_only, collect_backward, exact_gradients
from tasks.extract.batches import Batch
from tasks.extract.gradients.agreement import largest_error
from tasks.extract.gradients.gradient_plan import GradientPlan, make_plan
from tasks.extract.losses import Objective
from tasks.extract.models import Network


class Gradients:
    """Runs batches of one row space forward and backward."""

    def __init__(
        self, spec: CaptureSpec, objective: Objective, plan: GradientPlan, slow: GradientPlan | None
    ) -> None:
        self._spec = spec
        self._objective = objective
        self._plan = plan
        self._slow = slow

    def __call__(self, network: Network, batch: Batch, sites: Sequence[SiteLayout]) -> Backward:
        """The rows of a batch, and how they were found."""
        request = self._spec.request
        return collect_backward(
            network, batch, sites, request.rows, request.precision, self._objective, self._plan
        )

    def error(
        self, network: Network, batch: Batch, sites: Sequence[SiteLayout], found: dict[str, Tensor]
    ) -> float | None:
        """How far gradients of parameters lie from plain autograd, see `largest_error`; None where there are none.

        Args:
            network: as the unit has it.
            batch: one sample.
            sites: of the space.
            found: its rows.
        """
        parameters = [layout for layout in sites if layout.site.is_parameter]
        if self._slow is None or not parameters:
            return None
        exact = exact_gradients(network, batch, self._spec.request.precision, self._objective, self._slow)
        exact = {str(site.site): exact[site.site.module] for site in parameters}
        autocast = self._spec.request.precision.autocast
        dtype = network.input_dtype if autocast == "off" else getattr(torch, autocast)
        worst = largest_error(found, exact, dtype)
        return worst if math.isfinite(worst) else None


def needs_backward(spec: CaptureSpec, space: Space) -> bool:
    """Whether a row space holds anything but activations."""
    return any(layout.site.quantity != "activation" for layout in spec.layout.sites_of(space.name))


def make_gradients(spec: CaptureSpec, space: Space, network: Network) -> Gradients | None:
    """The backward part of a unit; None where its space holds activations alone.

    Raises:
        DataError: if the loss is not the one that was planned.
    """
    request, layout = spec.request, spec.layout.gradients
    if layout is None or request.loss is None or not needs_backward(spec, space):
        return None
    objective = make_objective(spec)
    sites = spec.layout.sites_of(space.name)
    wanted = request.parameter_gradients
    if wanted is None or not any(site.site.is_parameter for site in sites):
        return Gradients(spec, objective, activations_only(network, layout.as_it_is), None)
    every = any(site.site.quantity == "activation_gradient" for site in sites)
    names, seed = layout.parameters, request.precision.seed
    entries: Literal["all", "wanted"] = "all" if every else "wanted"
    looped = frozenset(layout.looped)
    plan = make_plan(network.module, names, wanted.keep, seed, looped, entries, layout.as_it_is)
    slow = make_plan(network.module, names, wanted.keep, seed, frozenset(names))
    return Gradients(spec, objective, plan, slow)


def make_objective(spec: CaptureSpec) -> Objective:
    """The loss of a capture.

    Raises:
        DataError: if it is not the one that was planned, or there is none.
    """
    request, layout = spec.request, spec.layout.gradients or GradientLayout()
    if request.loss is None:
        raise DataError("the capture has no loss; give it one, such as loss: {kind: lm}")
    objective = Objective(request.loss, layout.mean_targets, layout.n_classes)
    if objective.digest != layout.loss_digest:
        raise DataError(
            f"the loss has digest {objective.digest[:12]}, the one that was planned {layout.loss_digest[:12]}: its function's file or its "
            "prototypes changed; plan the run again: another loss is another capture"
        )
    return objective

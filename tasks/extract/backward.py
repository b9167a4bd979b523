"""One forward and one backward over a batch: activations, their gradients, and gradients of parameters, sample by sample."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.capture import Precision, Rows
from schemas.errors import ModelError
from schemas.gradients import Exact
from schemas.layout import Side, Site, SiteLayout
from tasks.extract.batches import Batch
from tasks.extract.collect import RowSink, forward, running
from tasks.extract.gradients.graph import opened
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import GradientPlan, make_plan, sample_gradients
from tasks.extract.hooks import by_call, observe, tensor_at
from tasks.extract.losses import Objective
from tasks.extract.models import Network

NO_GRADIENT = "no gradient passes through it: nothing before it has values that could vary"


class Backward(NamedTuple):
    """What one pass gave."""

    rows: dict[str, Tensor]
    """Site string to tensor [row, feature] on the CPU."""
    looped: tuple[str, ...]
    """Parameters whose gradients took a pass for each sample."""
    weighed: bool
    """Whether losses were weighted, as the graph did not tell that rows stay with their samples: four passes or more."""


def collect_backward(
    network: Network,
    batch: Batch,
    sites: Sequence[SiteLayout],
    rows: Rows,
    precision: Precision,
    objective: Objective,
    plan: GradientPlan,
) -> Backward:
    """The rows of `sites` for one batch: of activations, of the loss's gradients there, and of gradients of parameters.

    Rows of activations and of gradients at a site are those of `collect`, in the same order. The gradient at a tensor is that of the sum
    of all losses, of which a sample's own rows see only its own loss. A tensor that has no part in the loss has gradient zero. The
    network and all random generators are left as they were.

    Args:
        network: as loaded.
        batch: its inputs and targets.
        sites: wanted, with the shapes of the dry run.
        rows: which of them.
        precision: seed and autocast.
        objective: the loss of each sample.
        plan: of gradients of parameters; one of no parameters where none are wanted.

    Raises:
        ModelError: if a site is not reached or no gradient passes through it, or the loss is not one number per sample.
        ResourceError: if the device runs out of memory.
        TakeTurns: see `collect`.

    Cost: one forward, and one backward without gradients of weights; memory of the graph of one batch.
    """
    found: dict[str, Tensor] = {}
    layouts = {layout.site: layout for layout in sites if not layout.site.is_parameter}
    sink = RowSink(batch, layouts, rows, found, None)
    passed: dict[Site, Tensor] = {}
    unseen: dict[Site, Tensor] = {}
    plain = losses_of(network, batch, objective)

    def losses(sample: int | None) -> Tensor:
        left = [
            site for site in layouts if str(site) not in found
        ]  # a batch may be run again, and after it raised
        if sample is not None or not left:
            return plain(sample)
        passed.clear()
        with _watched(network, left, partial(_take, sink, passed, unseen)):
            values = objective(forward(network, _opened(batch)), batch)
        unseen.update(passed)  # from here on: a network may differentiate itself before
        return values

    with running(network, batch, precision), torch.enable_grad():
        gathered = sample_gradients(network.module, losses, batch.n_samples, plan)
    for site, like in unseen.items():
        sink(site, torch.zeros_like(like))
    sink.finish()
    for site in (layout.site for layout in sites if layout.site.is_parameter):
        found[str(site)] = gathered.values[site.module].cpu()
    return Backward(
        {str(layout.site): found[str(layout.site)] for layout in sites}, gathered.looped, gathered.weighed
    )


def exact_gradients(
    network: Network, batch: Batch, precision: Precision, objective: Objective, plan: GradientPlan
) -> dict[str, Tensor]:
    """Gradients of parameters by plain autograd alone, in the form of a plan: name to [sample, feature] on the CPU.

    Cost: a forward and a backward for each sample, with the gradients of weights.
    """
    with running(network, batch, precision), torch.enable_grad():
        losses = losses_of(network, batch, objective)
        found = looped_gradients(plan.parameters, losses, batch.n_samples, plan.plan, plan.others)
    return {name: rows.cpu() for name, rows in found.items()}


def losses_of(network: Network, batch: Batch, objective: Objective) -> Callable[[int | None], Tensor]:
    """Runs the network over a batch (None), or over one of its samples alone, and gives the loss of each."""

    def losses(sample: int | None) -> Tensor:
        here = batch if sample is None else batch.take(torch.tensor([sample]))
        return objective(forward(network, here), here)

    return losses


def without_gradient(
    network: Network, batch: Batch, sites: Sequence[Site], precision: Precision, objective: Objective
) -> dict[Site, str]:
    """Sites whose tensor no gradient can pass through, and why, from one pass."""
    refused: dict[Site, str] = {}

    def see(site: Site, tensor: Tensor) -> None:
        if not tensor.requires_grad:
            refused[site] = NO_GRADIENT

    def losses(_: int | None) -> Tensor:
        with _watched(network, sites, see):
            return objective(forward(network, _opened(batch)), batch)

    with running(network, batch, precision), torch.enable_grad():
        sample_gradients(network.module, losses, batch.n_samples, activations_only(network))
    return refused


def activations_only(network: Network) -> GradientPlan:
    """A plan of no parameters, under which gradients pass through everything that parameters have a part in."""
    return make_plan(network.module, (), Exact(), 0, entries="all")


def _opened(batch: Batch) -> Batch:
    """The batch with floating inputs through which gradients pass; copies, so that the network may write into them."""
    return batch._replace(
        inputs={
            name: opened(value) if value.is_floating_point() else value
            for name, value in batch.inputs.items()
        }
    )


@contextmanager
def _watched(network: Network, sites: Sequence[Site], take: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Hands over the tensors of sites as they pass, with their graph; the forward goes on to its end.

    Raises:
        ModelError: if a site is not reached.
    """
    waiting = by_call(sites)

    def visit(path: str, side: Side, call: int, value: Any) -> None:
        for site in waiting.pop((path, side, call), ()):
            take(site, tensor_at(value, site))

    with observe(network.module, {(path, side) for path, side, _ in waiting}, visit):
        yield
    missed = ", ".join(str(site) for group in waiting.values() for site in group)
    if missed:
        raise ModelError(
            f"the forward of {type(network.module).__name__} ended without reaching {missed}: "
            "the calls of a module depend on the data; capture only sites that every batch reaches"
        )


def _take(
    sink: RowSink, passed: dict[Site, Tensor], unseen: dict[Site, Tensor], site: Site, tensor: Tensor
) -> None:
    """Copy an activation now, a gradient when the backward comes by: after the forward, which fills `passed`; `unseen` holds what it has
    not come by."""
    if site.quantity == "activation":
        sink(site, tensor.detach())
        return
    if not tensor.requires_grad:
        raise ModelError(f"{site}: {NO_GRADIENT}")
    passed[site] = tensor.detach()

    def arrived(gradient: Tensor) -> None:
        if unseen.pop(site, None) is not None:
            sink(site, gradient)

    tensor.register_hook(arrived)  # type: ignore[no-untyped-call]

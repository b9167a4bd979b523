"""One forward and one backward over a batch: activations, their gradients, and gradients of parameters, sample by sample."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from schemas.capture import Precision, Rows
from schemas.errors import ModelError
from schemas.gradients import Exact
from schemas.layout import Side, Site, SiteLayout
from tasks.extract.batches import Batch
from tasks.extract.collect import RowSink, forward, running, seed_again
from tasks.extract.gradients.gradient_plan import GradientPlan, make_plan
from tasks.extract.gradients.graph import graph_of, opened
from tasks.extract.gradients.loop import looped_gradients
from tasks.extract.gradients.sample_gradients import sample_gradients
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

    Cost: one forward, and one backward without gradients of weights, more as in `sample_gradients`; memory of the graph of one batch.
    """
    watch = _Watch(network, batch, objective, sites, rows)
    plain = losses_of(network, batch, objective)

    def losses(sample: int | None) -> Tensor:
        return watch.losses() if sample is None and watch.left else plain(sample)  # a batch may be run again

    def restart() -> None:
        watch.clear()
        seed_again(network, precision)

    with running(network, batch, precision), torch.enable_grad():
        again = restart if watch.left else None
        gathered = sample_gradients(network.module, losses, batch.n_samples, plan, again)
    found = watch.finish()
    for site in (layout.site for layout in sites if layout.site.is_parameter):
        found[str(site)] = gathered.values[site.module].cpu()
    every = {str(layout.site): found[str(layout.site)] for layout in sites}
    return Backward(every, gathered.looped, gathered.weighed)


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
    network: Network,
    batch: Batch,
    sites: Sequence[Site],
    precision: Precision,
    objective: Objective,
    as_it_is: bool = False,
) -> dict[Site, str]:
    """Sites whose tensor no gradient can pass through, and why, from one pass; `as_it_is`: see `make_plan`."""
    refused: dict[Site, str] = {}

    def see(site: Site, tensor: Tensor) -> None:
        if not tensor.requires_grad:
            refused[site] = NO_GRADIENT

    def losses(_: int | None) -> Tensor:
        with _watched(network, sites, see):
            return objective(forward(network, _opened(batch)), batch)

    with running(network, batch, precision), torch.enable_grad():
        plan = activations_only(network, as_it_is)
        sample_gradients(network.module, losses, batch.n_samples, plan, refused.clear)
    return refused


def activations_only(network: Network, as_it_is: bool = False) -> GradientPlan:
    """A plan of no parameters, under which gradients pass through all that parameters have a part in; `as_it_is`: see `make_plan`."""
    return make_plan(network.module, (), Exact(), 0, entries="all", as_it_is=as_it_is)


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


class _Watch:
    """Takes activations as they pass, and their gradients as the backward of the losses comes by."""

    def __init__(
        self,
        network: Network,
        batch: Batch,
        objective: Objective,
        sites: Sequence[SiteLayout],
        rows: Rows,
    ) -> None:
        layouts = {layout.site: layout for layout in sites if not layout.site.is_parameter}
        self._network, self._batch, self._objective = network, batch, objective
        self._sites = tuple(layouts)
        self._found: dict[str, Tensor] = {}
        self._sink = RowSink(batch, layouts, rows, self._found, None)
        self._unseen: dict[Site, Tensor] = {}
        """Where the backward has not come by, to zeros like it; empty during the forward, in which a network may differentiate itself."""
        self._beside: set[Site] = set()
        """That are not on the graph of the losses."""
        self._taken: set[Site] = set()
        """Where it came by."""
        self._reentrant = False

    @property
    def left(self) -> list[Site]:
        """Sites that nothing was taken at."""
        return [site for site in self._sites if str(site) not in self._found]

    def clear(self) -> None:
        """Forget what was taken."""
        self._found.clear()
        self._unseen.clear()
        self._beside.clear()
        self._taken.clear()

    def losses(self) -> Tensor:
        """[sample], from a forward that is watched."""
        self._unseen.clear()
        passed: dict[
            Site, tuple[Tensor, Any]
        ] = {}  # nodes of the graph, whose hooks know this watch, stay here
        with _watched(self._network, self.left, partial(self._take, passed)):
            values = self._objective(forward(self._network, _opened(self._batch)), self._batch)
        graph = graph_of(values)
        self._unseen.update({site: like for site, (like, _) in passed.items()})
        self._reentrant = graph.reentrant
        if not graph.reentrant or graph.foreign:  # a checkpoint may take what was made before it
            self._beside.update(site for site, (_, node) in passed.items() if node not in graph.nodes)
        return values

    def finish(self) -> dict[str, Tensor]:
        """Site string to rows; zeros where no gradient came by."""
        for site, like in self._unseen.items():
            self._sink(site, like)
        self._sink.finish()
        return self._found

    def _take(self, passed: dict[Site, tuple[Tensor, Any]], site: Site, tensor: Tensor) -> None:
        if site.quantity == "activation":
            self._sink(site, tensor.detach())
            return
        if not tensor.requires_grad:
            raise ModelError(f"{site}: {NO_GRADIENT}")
        zeros = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
        passed[site] = zeros, get_gradient_edge(tensor).node
        tensor.register_hook(partial(self._arrived, site))  # type: ignore[no-untyped-call]

    def _arrived(self, site: Site, gradient: Tensor) -> None:
        if self._unseen.pop(site, None) is None:
            if self._reentrant and site in self._taken:
                raise ModelError(
                    f"{site}: several parts that run again in the backward take it, and its gradient comes in pieces; use checkpoints with "
                    "use_reentrant=False, or leave the site out"
                )
            return
        self._taken.add(site)
        if site in self._beside:
            raise ModelError(
                f"{site}: only a backward that the network runs by itself passes it, so that the gradient there is not that of the loss"
            )
        self._sink(site, gradient)

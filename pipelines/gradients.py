"""What a request's gradients are, found before the first unit: parameters, forms, losses, and what needs the slow way."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch

from schemas.capture import CaptureRequest
from schemas.errors import ModelError, ResourceError, SubspanError, UnknownNameError, nearest
from schemas.gradients import Norms, ParameterGradients
from schemas.layout import GradientLayout, Quantity, Site, SiteLayout
from tasks.extract.backward import losses_of, without_gradient
from tasks.extract.batches import Batch
from tasks.extract.collect import running
from tasks.extract.encode import Encoder
from tasks.extract.gradients.agreement import Exactly, Probe, needs_loop
from tasks.extract.gradients.by_rules import DIFFERENTIATES
from tasks.extract.gradients.gradient_plan import COMPARED, make_plan
from tasks.extract.gradients.projections import outputs
from tasks.extract.gradients.sample_gradients import is_weighed
from tasks.extract.losses import Objective
from tasks.extract.mixing import refuse_mixed
from tasks.extract.models import Network
from tasks.extract.pretrained import free_bytes
from tasks.extract.sites import SiteInfo, glob
from tasks.extract.sources.base import Source
from tasks.extract.targets import count_classes

WIDE_COPIES = 2
"""Of the network's size in float64, for the copy and the gradients of a sample."""
COUNTED = 256
"""Samples whose targets are counted at a time."""


class Resolved(NamedTuple):
    """Gradients of a capture."""

    sites: tuple[SiteLayout, ...]
    """Of parameters."""
    layout: GradientLayout


def objective_of(request: CaptureRequest, layout: GradientLayout) -> Objective:
    """The loss of a request as a unit computes it."""
    if request.loss is None:
        raise ModelError("the capture has no loss")
    return Objective(request.loss, layout.mean_targets, layout.n_classes)


def resolve_gradients(
    network: Network,
    source: Source,
    encoder: Encoder,
    batch: Batch,
    request: CaptureRequest,
    watched: bool = False,
) -> Resolved | None:
    """Parameters, their arrays, and what the loss needs to know of the whole capture; None where there is no loss.

    Args:
        network: as loaded.
        source: the data.
        encoder: of all samples of the capture.
        batch: a few of them.
        request: with its loss.
        watched: whether gradients at sites are kept in the same row space as those of parameters.

    Raises:
        UnknownNameError: if no parameter or label has such a name.
        ModelError: if a frozen parameter is asked for by name, or the loss does not fit the network.

    Cost: where parameters are wanted, a few forward and backward passes over the batch.
    """
    loss = request.loss
    if loss is None:
        return None
    classes = count_classes(source, loss)
    counting = Objective(loss)
    layout = GradientLayout(
        mean_targets=_mean_targets(encoder, counting) if counting.needs_count else 1.0,
        n_classes=classes,
        loss_digest=counting.digest,
    )
    wanted = request.parameter_gradients
    names = () if wanted is None else match_parameters(network, wanted.parameters)
    ways = _ways(network, batch, request, objective_of(request, layout), names, watched)
    layout = layout.model_copy(update=ways._asdict())
    if wanted is None:
        return Resolved((), layout)
    shapes = {name: tuple(network.module.get_parameter(name).shape) for name in names}
    frozen = _frozen(network, wanted.parameters)
    layout = layout.model_copy(update={"parameters": names, "frozen": frozen})
    return Resolved(_layouts(shapes, wanted), layout)


def gradient_sites(
    infos: Sequence[SiteInfo],
    network: Network,
    batch: Batch,
    request: CaptureRequest,
    layout: GradientLayout | None,
) -> list[SiteInfo]:
    """Sites as the dry run found them; those that no gradient passes through are refused, where gradients are wanted."""
    if layout is None or not request.wants_activation_gradients:
        return list(infos)
    usable = [
        info.site.model_copy(update={"quantity": "activation_gradient"}) for info in infos if info.usable
    ]
    objective = objective_of(request, layout)
    refused = without_gradient(network, batch, usable, request.precision, objective, layout.as_it_is)
    return [
        info._replace(refusal=refused[site])
        if (site := info.site.model_copy(update={"quantity": "activation_gradient"})) in refused
        else info
        for info in infos
    ]


def with_quantities(sites: Sequence[SiteLayout], request: CaptureRequest) -> tuple[SiteLayout, ...]:
    """Every site once for each quantity that is kept there."""
    return tuple(
        layout.model_copy(update={"site": layout.site.model_copy(update={"quantity": quantity})})
        for layout in sites
        for quantity in request.quantities
    )


def match_parameters(network: Network, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of trainable parameters that globs mean, in the order of the network.

    Raises:
        UnknownNameError: if a pattern matches none.
        ModelError: if it names one that is frozen, or that the checkpoint lacks.
    """
    there, usable = dict(network.module.named_parameters()), _usable(network)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in there if glob(pattern).fullmatch(name)}
        if not found:
            raise UnknownNameError(
                f"parameter_gradients: the network has no parameter {pattern!r}; nearest: {nearest(pattern, there)}"
            )
        if not found & usable:
            name = next(name for name in there if name in found)
            why = (
                "is not in the checkpoint"
                if name in network.untrained
                else "is frozen (requires_grad is off) or holds no floats"
            )
            raise ModelError(
                f"parameter_gradients: {pattern!r} matches only what has no gradient: {name} {why}; unfreeze it in the factory, or leave "
                "it out"
            )
        chosen |= found & usable
    return tuple(name for name in there if name in chosen)


def _usable(network: Network) -> set[str]:
    """Parameters that have a gradient."""
    return {
        name
        for name, parameter in network.module.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point() and name not in network.untrained
    }


def _frozen(network: Network, patterns: Sequence[str]) -> tuple[str, ...]:
    """Those that globs mean and that have none."""
    usable = _usable(network)
    meant = (
        name
        for name, _ in network.module.named_parameters()
        if any(glob(p).fullmatch(name) for p in patterns)
    )
    return tuple(name for name in meant if name not in usable)


def _layouts(shapes: dict[str, tuple[int, ...]], wanted: ParameterGradients) -> tuple[SiteLayout, ...]:
    quantity: Quantity = "gradient_norm" if isinstance(wanted.keep, Norms) else "parameter_gradient"
    return tuple(
        SiteLayout(
            site=Site(module=name, quantity=quantity),
            space="sample",
            width=output.width,
            feature_axis=1,
            shape=output.shape,
            features=output.features,
        )
        for name, output in outputs(shapes, wanted.keep).items()
    )


class _Ways(NamedTuple):
    """What gradients of parameters cost."""

    looped: dict[str, str]
    """Parameter to why a pass for each sample is needed."""
    weighed: bool
    """Whether batches take four passes or more."""
    as_it_is: bool = False
    """Whether the network differentiates itself, so that it runs as it is."""


def _ways(
    network: Network,
    batch: Batch,
    request: CaptureRequest,
    objective: Objective,
    names: Sequence[str],
    watched: bool,
) -> _Ways:
    """How gradients are found, measured on a batch and on a smaller one in reverse.

    Raises:
        ModelError: if the loss does not fit the network, or a sample has a part in another's loss.
    """
    backwards = torch.arange(max(1, batch.n_samples - 1)).flip(0)  # what sorts samples does so here or there
    smaller = batch.take(backwards)
    probes = [Probe(losses_of(network, here, objective), here.n_samples) for here in (batch, smaller)]
    try:
        with running(network, batch, request.precision), torch.enable_grad():
            if refuse_mixed(network, (batch, smaller), objective):
                return _Ways(dict.fromkeys(names, DIFFERENTIATES), weighed=False, as_it_is=True)
            exactly = partial(_in_float64, network, (batch, smaller), objective)
            if not names:
                return _Ways({}, weighed=False)
            entries: Literal["all", "wanted"] = "all" if watched else "wanted"
            looped = needs_loop(network.module, probes, names, exactly, entries)
            plan = make_plan(network.module, names, COMPARED, 0, frozenset(looped), entries)
            return _Ways(looped, is_weighed(probes[0].losses, batch.n_samples, plan))
    except SubspanError:
        raise
    except Exception as error:
        raise ModelError(
            f"the network raised {type(error).__name__} in a backward pass over {batch.n_samples} samples or one of them "
            f"alone: {error}; a gradient "
            "of each sample needs a network that takes each alone, without statistics of the batch"
        ) from error


def _in_float64(network: Network, batches: Sequence[Batch], objective: Objective) -> Exactly:
    """A copy of the network with every number in float64.

    Raises:
        ResourceError: if there is no memory for it.
    """
    tensors = (*network.module.parameters(), *network.module.buffers())
    needed = WIDE_COPIES * sum(8 * tensor.numel() for tensor in tensors)
    if needed > free_bytes(network.device):
        raise ResourceError(f"a copy in float64 takes {needed:,} bytes, more than is free here")
    module = copy.deepcopy(network.module).double()
    wide = network._replace(module=module, input_dtype=torch.float64)
    return Exactly(module, [Probe(losses_of(wide, batch, objective), batch.n_samples) for batch in batches])


def _mean_targets(encoder: Encoder, objective: Objective) -> float:
    starts = range(0, len(encoder), COUNTED)
    some = (encoder.batch(list(range(a, min(a + COUNTED, len(encoder))))) for a in starts)
    return float(sum(int(objective.count(batch).sum()) for batch in some)) / max(1, len(encoder))

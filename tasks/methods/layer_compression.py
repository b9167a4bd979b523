"""What methods that replace a linear layer's weights have in common: the weights, second moments of inputs, and what ranks lose."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from schemas.stage import site_of
from tasks.methods import grouped_moments
from tasks.methods.contract import Inputs, State
from tasks.numerics import layer_factors, moments
from tasks.numerics.layer_error import output_energy
from tasks.numerics.layer_factors import Factors
from tasks.numerics.symmetric import full


@runtime_checkable
class HasWeight(Protocol):
    """Options that name weights."""

    @property
    def weight(self) -> str: ...


class AtRank(Frozen):
    """What a rank costs and loses."""

    kept: float
    """Share of the weight's numbers that was asked for."""
    rank: int
    lost: float
    """Share of the outputs' energy that is lost on the rows that were read."""
    lost_held_out: float | None
    """The same on samples that had no part in the factors, which were made of the others; mean over groups of samples."""
    lost_plain: float
    """Share that the singular value decomposition of the weights alone loses at this rank."""


class Rows(NamedTuple):
    """Second moments of a layer's inputs."""

    gram: Float64[Tensor, "feature feature"]
    """Mean of x x', about the mean where that is corrected."""
    mean: Float64[Tensor, " feature"]


def parameters(config: HasWeight) -> tuple[str, ...]:
    """What is read of the network."""
    return (config.weight,)


def check_weight(inputs: Inputs, name: str) -> None:
    """Refuse weights that are no linear map of the site's features.

    Raises:
        MethodError: also if they are not finite.
    """
    weight, width = inputs.weights[name], inputs.widths["x"]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise MethodError(
            f"{name} has the shape {tuple(weight.shape)}, expected [outputs, {width}] for the {width} features of the site; connect the "
            "input of a linear layer, such as encoder.layer.0.output.dense:in:0"
        )
    if not bool(weight.isfinite().all()):
        raise MethodError(f"{name} holds NaN or infinity; load another checkpoint")


def check_gradients(inputs: Inputs, name: str) -> None:
    """Refuse gradients that are not those of the layer's own outputs.

    Raises:
        MethodError: with both sites.
    """
    outputs, width = inputs.weights[name].shape[0], inputs.widths["g"]
    sites = {port: site_of(site) for port, site in inputs.sites.items()}
    another = (
        sites and sites["g"].quantity == "activation_gradient" and sites["g"].module != sites["x"].module
    )
    if width != outputs or another:
        raise MethodError(
            f"port g reads {inputs.sites.get('g', 'rows')} with {width} features, expected the gradient at the output of the layer whose "
            f"input port x reads, with {outputs}: inputs: {{x: {{sites: 'L:in:0'}}, g: {{sites: 'L:out:0:grad'}}}}"
        )


class Read(NamedTuple):
    """What a state of moments in groups of samples tells of a layer's inputs."""

    rows: Rows
    """Of all groups together."""
    groups: list[State]
    """Those that hold rows."""
    n_rows: int


def read_of(state: State, corrected: bool) -> Read:
    """Of a state of `groups_state`.

    Raises:
        MethodError: without rows.
    """
    every = grouped_moments.each(state)
    groups = [group for group in every if int(group["n"])]
    return Read(
        rows_of(grouped_moments.total(every), corrected), groups, sum(int(group["n"]) for group in groups)
    )


def held_out(
    groups: Sequence[State], corrected: bool
) -> Iterator[tuple[Rows, Float64[Tensor, "feature feature"]]]:
    """For each group the rows of all others, and its own second moment about the point that these correct for; none of a single group."""
    if len(groups) < 2:
        return
    for group, rest in zip(groups, grouped_moments.leaving_out(list(groups)), strict=True):
        seen = rows_of(rest, corrected)
        yield seen, gram_about(group, seen.mean if corrected else torch.zeros_like(seen.mean))


def rows_of(state: State, corrected: bool) -> Rows:
    """Of all rows of a state of moments."""
    mean = moments.mean(state)
    return Rows(gram_about(state, mean if corrected else torch.zeros_like(mean)), mean)


def gram_about(state: State, point: Float64[Tensor, " feature"]) -> Float64[Tensor, "feature feature"]:
    """Mean over rows of (x - point) (x - point)'."""
    moments.require(state, 1)
    return full(moments.move(state, point)["g"]) / state["w"]


def mean_of(losses: Sequence[Float64[Tensor, " rank"]]) -> Float64[Tensor, " rank"] | None:
    """Over groups; None without any."""
    return torch.stack(list(losses)).mean(0) if losses else None


def at_rank(kept: float, weight: Tensor, found: Mapping[str, Tensor | None]) -> AtRank:
    """What the rank of a share of the weight's numbers loses."""
    rank = layer_factors.fitting_rank(kept, *weight.shape)
    held_out = found["held_out_loss"]
    return AtRank(
        kept=kept,
        rank=rank,
        lost=share(found["loss"], rank),
        lost_held_out=None if held_out is None else share(held_out, rank),
        lost_plain=share(found["plain_loss"], rank),
    )


def arrays_of(
    factors: Factors, weight: Tensor, rows: Rows, found: Mapping[str, Tensor | None]
) -> dict[str, Tensor]:
    """Of the artifact: factors in the weight's dtype (16 bits widened), the mean, and losses (NaN where nothing is held out)."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    arrays = {name: factor.to(dtype).contiguous() for name, factor in factors._asdict().items()}
    missing = torch.full((factors.left.shape[1] + 1,), torch.nan, dtype=torch.float64, device=weight.device)
    losses = {name: missing if losses is None else losses for name, losses in found.items()}
    return arrays | {"mean": rows.mean} | losses


def lost_held_out(
    weight: Tensor, groups: Sequence[State], corrected: bool, standing_in: Callable[[Tensor], Tensor]
) -> float | None:
    """Share of the outputs' energy that is lost on groups of samples by weights that were made without them, over all groups.

    Args:
        weight: float64 [output, input].
        groups: moments of each group; all hold rows.
        corrected: whether the bias makes up for what the mean input of the others loses.
        standing_in: float64 [output, input] of a second moment [input, input].

    Returns:
        None with less than two groups, or where the outputs do not vary in all of the others.
    """
    lost = whole = 0.0
    for seen, gram in held_out(groups, corrected):
        if not output_energy(weight, seen.gram) > 0:
            return None
        lost += output_energy(weight - standing_in(seen.gram), gram)
        whole += output_energy(weight, gram)
    return lost / whole if whole > 0 else None


def notes_on_losses(n_rows: int, n_groups: int, gram: Tensor) -> list[str]:
    """What a reader of losses must know that follow from the second moment [input, input] of the rows that were read."""
    width, notes = len(gram), []
    if n_groups < 2:
        notes.append("all samples are in one group, so that nothing is held out; capture more samples")
    still = int((gram.diagonal() <= 1e-14 * gram.diagonal().max()).sum())
    if still:
        notes.append(f"{still} of {width} inputs never varied: nothing tells how their weights matter")
    if n_rows < 10 * width:
        notes.append(f"{n_rows} rows for {width} inputs: on other rows more is lost than on these")
    return notes


def share(losses: Tensor | None, rank: int) -> float:
    """Of the energy that a rank loses; 0 where there is none."""
    if losses is None or float(losses[0]) <= 0:
        return 0.0
    return float(losses[rank] / losses[0])

"""One number for each run of features of a row, as activations are kept for the backward of training: what is lost, beside KLT.

A row's features are cut into equal runs (sub-tokens); of each only its product with one fixed direction is kept, and the row is told as
those numbers times their directions. This saves memory in training, where the coarse input serves the gradient of the weights alone and
the forward stays exact (`tasks/compressed/sub_token.py`). It is no way to store rows: principal components of as many numbers never err
more, being the best of all that many linear ones, and KLT in as many bits errs less by far (`pca_nmse`, `klt_nmse`). How far training
suffers is not measured here.

Connect the input of a linear layer. Errors follow from the second moments of the rows about zero, exactly, but for the rounding of the
numbers to `number_bits` bits. Arrays: `direction` (group, place), rows of length 1; `group_nmse` (group) what each run loses of its own
energy, NaN where it has none.

That a direction is one of each run or one for all, and that it is the leading or the mean one, are reconstructions: the abstract says a
fixed one-dimensional subspace.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import merge, partial, start, state_config
from tasks.numerics import moments, rate_distortion, spectrum
from tasks.numerics.moments import Precision
from tasks.numerics.symmetric import full

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"direction": ("group", "place"), "group_nmse": ("group",)}
REFERENCE = (
    "Miles, Reddy, Elezi, Deng: VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections, NeurIPS (2024), reconstructed from "
    "its abstract. KLT and its loss at a step: Gish, Pierce, IEEE Transactions on Information Theory 14 (1968) 676"
)
SEEDS = (164,)


class Config(Frozen):
    """How rows are cut, and what each run is told by."""

    place: int = Field(default=8, ge=1)
    """Features of a run; must divide those of the rows."""
    direction: Literal["principal", "mean"] = "principal"
    """`principal`: along which most of the run's energy lies, which loses least; `mean`: the mean run."""
    shared: bool = False
    """One direction for all runs of a row."""
    number_bits: Literal[16, 32] = 16
    """Of a number as it is kept, for the rate."""
    precision: Precision = "float64"
    """Of products of features."""
    weight_label: str | None = None
    """A number of each sample that its rows are weighted by."""


class Result(Frozen):
    """What is lost and what it costs; errors over the rows' squared length."""

    n_rows: int
    width: int
    """Features."""
    groups: int
    """Runs of a row, and numbers that are kept of it."""
    bits_per_dimension: float
    """`number_bits` over the features of a run."""
    nmse: float
    worst_group_nmse: float
    """Of a run, over its own energy."""
    pca_nmse: float
    """Of as many principal components about zero: the least that so many linear numbers can lose."""
    klt_nmse: float
    """Of principal coordinates in steps of one size, at as many bits: by the formula, 0.2546 bits above the Gaussian limit for every
    coordinate that is told."""
    bytes_saved_share: float
    """Of the input in numbers of as many bits: 1 less one over the features of a run."""
    caveats: tuple[str, ...]


class Told(NamedTuple):
    """Directions with what they leave."""

    direction: Tensor
    """float64 [group, place]."""
    left: Tensor
    """float64 [group]: mean squared error."""
    energy: Tensor
    """float64 [group]."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if runs do not fill a row.
    """
    width = inputs.widths["x"]
    if width % config.place:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        near = sorted(fits, key=lambda n: abs(n - config.place))[:3]
        raise MethodError(
            f"runs of {config.place} features do not fill rows of {width}; set `place` to one of {', '.join(map(str, sorted(near)))}"
        )


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Directions and what they leave. Cost: O(feature^3).

    Raises:
        MethodError: without rows, for rows of zeros, or if the mean direction has no length.
    """
    moments.require(state, 1)
    about_zero = moments.move(state, torch.zeros_like(state["c"]))
    second = full(about_zero["g"]) / state["w"]
    total = float(second.trace())
    if not total > 0:
        raise MethodError("all rows are zeros: there is nothing to tell; look at the site")
    told = _told(second, moments.mean(state), config)
    values = spectrum.eigen(second).values.clamp(min=0)
    groups, bits = len(told.left), config.number_bits / config.place
    share = torch.where(told.energy > 0, told.left / told.energy, torch.nan)
    result = Result(
        n_rows=int(state["n"]),
        width=len(second),
        groups=groups,
        bits_per_dimension=bits,
        nmse=float(told.left.sum()) / total,
        worst_group_nmse=float(share[share.isfinite()].max()),
        pca_nmse=float(values[groups:].sum()) / total,
        klt_nmse=rate_distortion.stepped_error(values, bits * len(values)) / total,
        bytes_saved_share=1 - 1 / config.place,
        caveats=_caveats(int(state["n"]), config),
    )
    arrays = {"direction": told.direction, "group_nmse": share}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _told(second: Tensor, mean: Tensor, config: Config) -> Told:
    """A direction for each run."""
    groups = len(mean) // config.place
    each = torch.arange(groups, device=mean.device)
    runs = second.reshape(groups, config.place, groups, config.place)[each, :, each]
    means = mean.reshape(groups, config.place)
    if config.shared:
        found = _direction(runs.sum(0), means.mean(0), config)[None].expand(groups, -1)
    else:
        found = torch.stack(
            [_direction(run, middle, config) for run, middle in zip(runs, means, strict=True)]
        )
    energy = runs.diagonal(dim1=1, dim2=2).sum(1)
    kept = torch.einsum("gp,gpq,gq->g", found, runs, found)
    return Told(found.contiguous(), (energy - kept).clamp(min=0), energy)


def _direction(run: Tensor, middle: Tensor, config: Config) -> Tensor:
    """Of length 1; of a run of zeros any."""
    if config.direction == "principal" or not float(run.trace()) > 0:
        leading: Tensor = spectrum.eigen(run).vectors[0]
        return leading
    length = torch.linalg.vector_norm(middle)
    if not float(length) > 1e-12 * float(run.trace()) ** 0.5:
        raise MethodError("the mean run has no length to speak of; set `direction: principal`")
    unit: Tensor = middle / length
    return unit


def _caveats(n: int, config: Config) -> tuple[str, ...]:
    if config.direction == "principal" and n < 10 * config.place:
        return (f"directions of {config.place} features from {n} rows fit these better than others",)
    return ()

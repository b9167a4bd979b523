"""How few directions the outputs of an attention layer fill, how much of that its output matrix explains, and a basis to start features in.

Connect the output of the layer that W_O belongs to, such as `encoder.layer.3.attention.output.dense:out:0`. Variance is about the mean.
Arrays: `basis` (orthonormal rows), `scale` (standard deviation along each) and `mean` are the active subspace: `tasks.numerics.sae_init`
draws the first directions of a sparse autoencoder in it, as its docstring shows; `eigenvalue` of all directions, NaN below the rounding
floor; `weight_value`, the singular values of W_O.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.numerics import energy, moments, spectrum, white_noise
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "basis": ("component", "feature"),
    "scale": ("component",),
    "mean": ("feature",),
    "eigenvalue": ("feature",),
    "weight_value": ("order",),
}
REFERENCE = (
    "Attention layers add into low-dimensional residual subspaces (2025): share of directions with 99 % of the variance, and features of "
    "sparse autoencoders that start in the active subspace"
)
SEEDS = (154,)


class Config(Frozen):
    """Which weights, and how much of the variance."""

    weight: str = "{module}.weight"
    """The output matrix W_O; `{module}` is the module of the site."""
    share: float = Field(default=0.99, gt=0, le=1)
    """Of the variance, that the active subspace holds."""
    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are dealt into for the intervals; each costs one more covariance of memory and one more decomposition."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    """Features."""
    components: int
    """Directions that hold the share of the variance."""
    components_share: float
    """The same over the features; the paper reports about 0.6 for 0.99 of the variance."""
    fractional_share: Interval | None
    """The same, the last direction counted by the part of it that is needed, which unlike whole numbers can have an interval."""
    effective_rank: Interval | None
    """exp of the entropy of the shares of variance."""
    participation_ratio: Interval | None
    """(sum lambda)^2 / sum lambda^2."""
    white: float
    """Share of the features that as many rows of white noise would need."""
    weight_rank: int
    """Numerical rank of W_O."""
    weight_components: float
    """Share of the features that W_O alone would need: for inputs of it with the same energy in every direction."""
    weight_effective_rank: float | None
    """exp of the entropy of the squared singular values of W_O."""
    inside: Interval | None
    """Share of the variance inside the column space of W_O: 1 but for rounding where the site is W_O's own output."""
    aligned: Interval | None
    """Share of the variance inside as many leading left singular directions of W_O as the active subspace has."""
    aligned_null: float
    """The same for random directions."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    return (config.weight,)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter does not map into the site's features, or the groups' covariances take more than 2 GiB.
    """
    width = inputs.widths["x"]
    grouped_moments.check(width, config.groups)
    weight = inputs.weights[config.weight]
    if weight.ndim != 2 or weight.shape[0] != width:
        raise MethodError(
            f"{config.weight} has the shape {tuple(weight.shape)}, expected [{width}, inputs] for the {width} features of the site; "
            "connect the output of the layer that it belongs to, or name another with `weight`"
        )
    if not bool(weight.isfinite().all()):
        raise MethodError(f"{config.weight} holds NaN or infinity; load another checkpoint")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from all rows, and those with intervals from all rows but each group's.

    Raises:
        MethodError: for less than two groups with rows.

    Cost: O(groups width^3).
    """
    groups = grouped_moments.groups_of(state)
    total = grouped_moments.total(groups)
    stored = inputs.weights[config.weight]
    left, size, _ = torch.linalg.svd(stored.double(), full_matrices=False)
    rank = int((size > max(stored.shape) * torch.finfo(stored.dtype).eps * size[0]).sum())
    found = spectrum.resolve(total, config.precision)
    values = found.values.where(found.values > found.floor, 0.0)
    k = energy.components(values, config.share)
    columns, leading = left[:, :rank].T, left[:, : min(k, rank)].T
    whole = _measured(total, config, columns, leading)
    without = [_measured(rest, config, columns, leading) for rest in grouped_moments.leaving_out(groups)]
    most = dict.fromkeys(("effective_rank", "participation_ratio"), float(len(values)))
    named = {
        name: grouped_moments.interval(
            value, [getattr(w, name) for w in without], config.confidence, most.get(name, 1.0)
        )
        for name, value in whole._asdict().items()
    }
    entropy = spectrum.effective_rank(size.square())
    result = Result(
        n_rows=int(total["n"]),
        n_groups=len(groups),
        width=len(values),
        components=k,
        components_share=k / len(values),
        **named,
        white=white_noise.share_of_components(config.share, len(values) / max(1, int(total["n"]) - 1)),
        weight_rank=rank,
        weight_components=energy.components(size.square(), config.share) / len(values),
        weight_effective_rank=entropy if math.isfinite(entropy) else None,
        aligned_null=min(k, rank) / len(values),
        caveats=_caveats(int(total["n"]), len(groups), len(values), config),
    )
    arrays = {
        "basis": found.vectors[:k].contiguous(),
        "scale": values[:k].sqrt(),
        "mean": moments.mean(total),
        "eigenvalue": found.values.where(found.values > found.floor, math.nan),
        "weight_value": size,
    }
    return result, {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


class _Measured(NamedTuple):
    """Of some rows."""

    fractional_share: float
    effective_rank: float
    participation_ratio: float
    inside: float
    aligned: float


def _measured(state: State, config: Config, columns: Tensor, leading: Tensor) -> _Measured:
    """Numbers of rows; `columns` and `leading` are orthonormal rows."""
    covariance = moments.covariance(state)
    values = torch.linalg.eigvalsh(covariance).flip(0)
    values = values.where(values > spectrum.floor(values, moments.offset(state), config.precision), 0.0)
    total = float(covariance.trace())
    inside = [
        float(((v @ covariance) * v).sum()) / total if total > 0 else math.nan for v in (columns, leading)
    ]
    return _Measured(
        energy.fractional(values, config.share) / len(values),
        spectrum.effective_rank(values),
        spectrum.participation_ratio(values),
        *inside,
    )


def _caveats(n_rows: int, groups: int, width: int, config: Config) -> tuple[str, ...]:
    notes = list(grouped_moments.caveats(groups, config.groups))
    if n_rows < 10 * width:
        notes.append(f"{n_rows} rows for {width} features: few rows fill fewer directions than there are")
    return tuple(notes)

"""The directions of a network's input (or of a site) along which its loss changes: the spectrum of E[g g'].

Rows are gradients with respect to a tensor, one per sample or token. The second moment is about the origin: a direction along which
every sample has the same slope is as active as one along which slopes differ.
"""

import math

import torch
from pydantic import Field

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import caveats, merge, partial, start, state_config
from tasks.numerics import moments, spectrum
from tasks.numerics.moments import Precision, Weights

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "eigenvalue": ("component",),
    "low": ("component",),
    "high": ("component",),
    "direction": ("active", "feature"),
    "activity": ("feature",),
}
REFERENCE = (
    "Constantine, Diaz: Global sensitivity metrics from active subspaces, Reliability Engineering and System Safety 162 (2017), "
    "equation 20 (activity scores). Constantine, Dow, Wang, SIAM Journal on Scientific Computing 36 (2014): the gap"
)
SEEDS = (245,)


class Config(Frozen):
    """How large the subspace may be, and how exactly it is found."""

    dimension: int | None = Field(default=None, ge=1)
    """Of the active subspace; None: where the eigenvalues have their largest gap on a logarithmic axis."""
    most: int = Field(default=32, ge=1)
    """The largest dimension that the gap may choose."""
    precision: Precision = "float64"
    """Of the products of features."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals of eigenvalues."""
    weights: Weights = "reliability"
    """What row weights mean: relative importance, or how often a row occurred."""
    weight_label: str | None = None
    """The label of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """Shares lie in [0, 1]; None where all gradients are zero."""

    n_rows: int
    width: int
    trace: float
    """Mean squared norm of a gradient."""
    dimension: int
    """Of the active subspace; 0 without gradients."""
    gap: float | None
    """Eigenvalue inside over the next one outside."""
    gap_is_clear: bool | None
    """Whether the intervals of these two do not meet (Gaussian gradients supposed)."""
    share: float | None
    """Of the trace inside the subspace."""
    share_null: float
    """Of a random subspace of that dimension, dimension / width."""
    angle_error: float | None
    """Expected sum of squared sines between this subspace and that of infinitely many rows; None without a gap."""
    mean_gradient_share: float | None
    """Share of the trace that the mean gradient has."""
    residual: float
    caveats: tuple[str, ...]


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Eigenvalues with intervals, the subspace, and how active each feature is.

    Raises:
        MethodError: for less than two rows, or values that overflow.

    Cost: O(feature^3) once.
    """
    found = spectrum.resolve(state, config.precision, config.weights, center=False)
    n = moments.n_eff(state, config.weights)
    values = torch.where(found.values > found.floor, found.values, 0.0)
    low, high = spectrum.interval(values, n, config.confidence)
    k = _dimension(values, found.rank, config)
    basis = found.vectors[:k]
    arrays = {
        "eigenvalue": values,
        "low": low,
        "high": high,
        "direction": basis,
        "activity": (values[:k, None] * basis.square()).sum(0),
    }
    named = {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}
    return _result(state, found, values, (low, high), k, config), named


def _dimension(values: torch.Tensor, rank: int, config: Config) -> int:
    if config.dimension is not None or rank == 0:
        return min(config.dimension or 0, rank)
    last = min(rank, config.most, len(values) - 1)
    if last < 1:
        return rank
    floor = max(float(values[rank - 1]), torch.finfo(torch.float64).tiny)
    gaps = torch.log(values[:last]) - torch.log(values[1 : last + 1].clamp(min=floor * 1e-3))
    return int(gaps.argmax()) + 1


def _result(
    state: State,
    found: spectrum.Resolved,
    values: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
    k: int,
    config: Config,
) -> Result:
    width, n = len(values), moments.n_eff(state, config.weights)
    outside = float(values[k]) if 0 < k < width else 0.0
    error = spectrum.subspace_error(values, k, n) if 0 < k < width and outside > 0 else math.nan
    mean = float(moments.mean(state).square().sum())
    return Result(
        n_rows=int(state["n"]),
        width=width,
        trace=found.trace,
        dimension=k,
        gap=float(values[k - 1]) / outside if outside > 0 else None,
        gap_is_clear=bool(ends[0][k - 1] > ends[1][k]) if outside > 0 else None,
        share=min(1.0, float(values[:k].sum()) / found.trace) if found.trace > 0 else None,
        share_null=k / width,
        angle_error=error if math.isfinite(error) else None,
        mean_gradient_share=min(1.0, mean / found.trace) if found.trace > 0 else None,
        residual=found.residual,
        caveats=caveats(state, found, n),
    )

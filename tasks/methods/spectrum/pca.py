"""Principal components of a site: eigenvalues with intervals, a basis, and what of both can be trusted.

Arrays: `eigenvalue`, `eigenvalue_low` and `eigenvalue_high` hold one number per feature, descending, NaN
below the rounding floor; `components` has orthonormal rows; `explained` is their share of the exact trace;
components with one number in `block` have overlapping intervals: only the space they span is determined.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import caveats, merge, partial, start, state_config
from tasks.numerics import moments, spectrum
from tasks.numerics.moments import Precision, Weights

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "eigenvalue": ("order",),
    "eigenvalue_low": ("order",),
    "eigenvalue_high": ("order",),
    "components": ("component", "feature"),
    "explained": ("component",),
    "block": ("component",),
    "mean": ("feature",),
}
REFERENCE = (
    "Merge of moments: Chan, Golub, LeVeque, The American Statistician 37 (1983) 242. Intervals and angles: Anderson, Annals of "
    "Mathematical Statistics 34 (1963) 122, theorem 1. Accumulated unexplained variance: Pennec, Annals of Statistics 46 (2018) 2711"
)
SEEDS = (21, 68, 154)
DEFAULT_COMPONENTS = 64
SHOWN = 10


class Config(Frozen):
    """How many components, and how exactly."""

    components: int | None = Field(default=None, ge=1)
    """Basis vectors to keep; None keeps 64, or as many as there are features. Directions lost in rounding are
    never kept, so there may be fewer."""
    center: bool = True
    """Subtract the mean; off gives the second moment about the origin, divided by rows and not rows - 1."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Probability that an eigenvalue's interval holds it."""
    weights: Weights = "reliability"
    """What row weights mean: relative importance, or how often a row occurred."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found; the numbers themselves are in the arrays."""

    n_rows: int
    n_eff: float
    """Rows after weighting: (sum w)^2 / sum w^2."""
    width: int
    """Features."""
    trace: float
    """Total variance, from the diagonal alone."""
    components: int
    """Basis vectors kept."""
    explained: float | None
    """Share of the trace that they hold; None when there is no variance."""
    unexplained_area: float
    """Variance left out by the first 1, 2, ... components, summed over the kept ones."""
    eigenvalues: tuple[float, ...]
    """The ten largest."""
    resolved: int
    """Eigenvalues above the rounding floor; those below are NaN in the arrays."""
    floor: float
    """Products of features square the condition number: nothing below this can be told from rounding."""
    residual: float
    """Largest |C v - lambda v| over lambda_1."""
    interval_method: str
    subspace_error: float | None
    """Expected sum of squared sines of the angles between the kept subspace and that of endless rows, for
    independent Gaussian rows; None without a gap."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if more components are asked for than there are features.
    """
    width = inputs.widths["x"]
    if config.components is not None and config.components > width:
        raise MethodError(f"asked for {config.components} components, but the site has {width} features")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Eigenvalues, intervals and basis from the moments.

    Raises:
        MethodError: for less than two rows, or values that overflow.

    Cost: O(feature^3) once.
    """
    check(inputs, config)
    found = spectrum.resolve(state, config.precision, config.weights, config.center)
    kept = min(config.components or DEFAULT_COMPONENTS, found.rank)
    return _result(state, found, kept, config), _arrays(state, found, kept, config)


def _result(state: State, found: spectrum.Resolved, kept: int, config: Config) -> Result:
    values, trace = found.values, found.trace
    n = moments.n_eff(state, config.weights)
    error = spectrum.subspace_error(values.clamp(min=0), kept, n)
    return Result(
        n_rows=int(state["n"]),
        n_eff=n,
        width=len(values),
        trace=trace,
        components=kept,
        explained=spectrum.top_share(values, kept, trace) if found.rank else None,
        unexplained_area=spectrum.unexplained_area(values, kept, trace),
        eigenvalues=tuple(values[: min(SHOWN, found.rank)].tolist()),
        resolved=found.rank,
        floor=found.floor,
        residual=found.residual,
        interval_method=f"Anderson 1963, Gaussian rows, confidence {config.confidence:g}",
        subspace_error=error if math.isfinite(error) else None,
        caveats=caveats(state, found, n),
    )


def _arrays(state: State, found: spectrum.Resolved, kept: int, config: Config) -> Arrays:
    values = torch.where(found.values > found.floor, found.values, math.nan)
    low, high = spectrum.interval(values, moments.n_eff(state, config.weights), config.confidence)
    arrays: dict[str, Tensor] = {
        "eigenvalue": values,
        "eigenvalue_low": low,
        "eigenvalue_high": high,
        "components": found.vectors[:kept].contiguous(),
        "explained": values[:kept] / found.trace,
        "block": spectrum.blocks(low[:kept], high[:kept]),
        "mean": moments.mean(state) if config.center else torch.zeros_like(state["c"]),
    }
    return {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}

"""Whether a site's features have collapsed or repeat each other: the variance and covariance terms of VICReg, as meters.

The variance term is how far standard deviations of features fall below `gamma`, the covariance term their mean squared covariance with
others. Both are in the units of the rows; correlations are in none. Numbers have intervals by leaving samples out (tokens of one text count
as one group). Arrays, by feature: `std`, and `redundancy`, the mean squared correlation with the others; NaN for one that does not vary.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.numerics import moments
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"std": ("feature",), "redundancy": ("feature",)}
REFERENCE = (
    "Bardes, Ponce, LeCun, VICReg: variance-invariance-covariance regularization for self-supervised learning, ICLR (2022), equations 1 "
    "to 4, without the invariance of pairs. Correlations: Zbontar, Jing, Misra, LeCun, Deny, Barlow Twins, ICML (2021), of rows with "
    "themselves"
)
SEEDS = (58,)
FLAT = 1e-13
"""Share of its mean square that a feature's variance must exceed: float32 does not resolve less."""


class Config(Frozen):
    """What counts as collapsed, and in which units."""

    gamma: float = Field(default=1.0, gt=0)
    """Standard deviation that features should have at least."""
    epsilon: float = Field(default=1e-4, ge=0)
    """Added to variances before their root is taken, as in training."""
    scale: Literal["stored", "unit"] = "stored"
    """Rows as they are, or divided so that the mean variance of features is 1, which compares sites of different scales."""
    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are dealt into for the intervals; each costs one more covariance of memory."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    """Features."""
    variance: Interval | None
    """Mean over features of max(0, gamma - sqrt(variance + epsilon)): 0 if none is collapsed, gamma if all are constant."""
    covariance: Interval | None
    """Sum of squared covariances of different features, over features: 0 for features that are not correlated."""
    covariance_random: float | None
    """Of as many independent rows whose features are not correlated; of dependent rows it is larger."""
    correlation: Interval | None
    """Mean squared correlation of different features that vary: 0..1, whatever their scale."""
    correlation_random: float | None
    """The same of independent rows: 1 / (rows - 1)."""
    collapsed: Interval | None
    """Share of features whose standard deviation is below gamma."""
    constant: int
    """Features that do not vary beyond the rounding of float32."""
    least_std: float
    """Of all features, in the units asked for."""
    median_std: float
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the groups' covariances take more than 2 GiB.
    """
    grouped_moments.check(inputs.widths["x"], config.groups)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from all rows, and from all rows but each group's.

    Raises:
        MethodError: for less than two groups with rows, or less than two rows.

    Cost: O(groups feature^2).
    """
    groups = grouped_moments.groups_of(state)
    total = grouped_moments.total(groups)
    whole = _measured(total, config)
    if whole is None:
        raise MethodError(
            f"the weights of {int(total['n'])} rows leave no degree of freedom; weigh at least two rows alike"
        )
    without = [_measured(rest, config) for rest in grouped_moments.leaving_out(groups)]
    named = ("variance", "covariance", "correlation", "collapsed")
    found = {
        name: grouped_moments.interval(
            getattr(whole, name),
            [math.nan if w is None else getattr(w, name) for w in without],
            config.confidence,
            1.0 if name in ("correlation", "collapsed") else math.inf,
        )
        for name in named
    }
    n, spread = moments.n_eff(total), whole.std.square()
    products = float(spread.sum().square() - spread.square().sum()) / len(spread)
    result = Result(
        n_rows=int(total["n"]),
        n_groups=len(groups),
        width=len(spread),
        covariance_random=products / (n - 1) if n > 1 else None,
        correlation_random=min(1.0, 1 / (n - 1)) if n > 1 and found["correlation"] is not None else None,
        constant=whole.constant,
        least_std=float(whole.std.min()),
        median_std=float(whole.std.median()),
        caveats=grouped_moments.caveats(len(groups), config.groups) + _caveats(whole, config),
        **found,
    )
    arrays = {"std": whole.std, "redundancy": whole.redundancy}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Measured(NamedTuple):
    """Of some rows."""

    variance: float
    covariance: float
    correlation: float
    collapsed: float
    constant: int
    std: Tensor
    redundancy: Tensor


def _measured(state: State, config: Config) -> _Measured | None:
    """None where nothing is left to divide by."""
    if moments.n_eff(state) <= 1 + 1e-12:
        return None
    found = moments.covariance(state)
    raw = found.diagonal().clamp(min=0).clone()
    varies = raw > FLAT * (raw + moments.mean(state).square())
    raw = raw * varies
    unit = float(raw.mean()) if config.scale == "unit" and bool(varies.any()) else 1.0
    spread, width = raw / unit, len(raw)
    between = found.div_(unit).square_().fill_diagonal_(0)
    between *= (varies[:, None] & varies).to(between.dtype)
    squared = between / torch.outer(spread, spread).where(varies[:, None] & varies, 1.0)
    others = int(varies.sum()) - 1
    return _Measured(
        variance=float((config.gamma - (spread + config.epsilon).sqrt()).clamp(min=0).mean()),
        covariance=float(between.sum()) / width,
        correlation=float(squared.sum()) / (others * (others + 1)) if others > 0 else math.nan,
        collapsed=float((spread.sqrt() < config.gamma).double().mean()),
        constant=width - others - 1,
        std=spread.sqrt(),
        redundancy=(squared.sum(1) / max(1, others)).where(
            varies if others > 0 else torch.zeros_like(varies), math.nan
        ),
    )


def _caveats(found: _Measured, config: Config) -> tuple[str, ...]:
    if config.scale == "stored" and (found.collapsed in (0.0, 1.0)):
        return ("no or every feature is below gamma: choose gamma by the rows' scale, or `scale: unit`",)
    return ()

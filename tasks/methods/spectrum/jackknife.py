"""Dimensions and eigenvalues of a site with intervals that hold for dependent rows: tokens of one text count as one group.

Samples are dealt into groups; every number is computed again without each group in turn, and what it then differs by tells its
uncertainty, whatever the rows inside a sample have in common. Arrays: `eigenvalue` with `eigenvalue_low` and `eigenvalue_high`, one per
kept component; `components`, their basis.
"""

import math
from collections.abc import Callable
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
from tasks.numerics import jackknife, spectrum
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "eigenvalue": ("component",),
    "eigenvalue_low": ("component",),
    "eigenvalue_high": ("component",),
    "components": ("component", "feature"),
}
REFERENCE = (
    "Jackknife: Quenouille, Biometrika 43 (1956) 353; Tukey, Annals of Mathematical Statistics 29 (1958) 614; by groups: Busing, Meijer, "
    "van der Leeden, Statistics and Computing 9 (1999) 3"
)
SEEDS = (16, 21, 206)
SHOWN = 10


class Config(Frozen):
    """How many groups, and of what."""

    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are dealt into; each costs one more covariance of memory and one more decomposition."""
    components: int | None = Field(default=None, ge=1)
    """Leading components whose eigenvalues, and whose common subspace, get an uncertainty; None: ten, or as many as there are features."""
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
    trace: Interval | None
    """Total variance."""
    participation_ratio: Interval | None
    """(sum lambda)^2 / sum lambda^2 of the sample: too low where rows are few."""
    participation_ratio_unbiased: Interval | None
    """The same with both sums estimated without bias, for rows that do not depend on each other. It may exceed the features."""
    effective_rank: Interval | None
    """exp of the entropy of the shares."""
    stable_rank: Interval | None
    """trace / lambda_1."""
    anisotropy: Interval | None
    """lambda_1 / trace."""
    subspace_error: float | None
    """Expected sum of squared sines of the angles between the kept subspace and that of endless samples."""
    independent_rows: float | None
    """So many independent Gaussian rows would leave the largest eigenvalue as uncertain as these rows do."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the groups' covariances take more than 2 GiB, or more components are asked for than there are features.
    """
    width = inputs.widths["x"]
    grouped_moments.check(width, config.groups)
    if config.components is not None and config.components > width:
        raise MethodError(f"asked for {config.components} components, but the site has {width} features")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from all rows, and from all rows but each group's.

    Raises:
        MethodError: for less than two groups with rows, or values that overflow.

    Cost: O(groups feature^3).
    """
    groups = grouped_moments.groups_of(state)
    whole = _measured(grouped_moments.total(groups), config)
    without = [_measured(rest, config) for rest in grouped_moments.leaving_out(groups)]
    k = min(len(found.values) for found in (whole, *without))
    values = [
        jackknife.estimate(float(whole.values[i]), [float(w.values[i]) for w in without], config.confidence)
        for i in range(k)
    ]
    named = {
        name: grouped_moments.interval(
            value, [w.numbers[name] for w in without], config.confidence, _most(name, inputs.widths["x"])
        )
        for name, value in whole.numbers.items()
    }
    error = jackknife.spread(whole.vectors[:k], [w.vectors[:k] for w in without])
    result = Result(
        n_rows=sum(int(group["n"]) for group in groups),
        n_groups=len(groups),
        width=inputs.widths["x"],
        **named,
        subspace_error=error if math.isfinite(error) and k else None,
        independent_rows=_independent(values),
        caveats=_caveats(len(groups), config),
    )
    return result, _arrays(whole, values, k)


class _Measured(NamedTuple):
    """Of some rows."""

    numbers: dict[str, float]
    values: Tensor
    vectors: Tensor


NUMBERS: dict[str, Callable[[Tensor, float], float]] = {
    "trace": lambda values, trace: trace,
    "participation_ratio": lambda values, trace: spectrum.participation_ratio(values),
    "effective_rank": lambda values, trace: spectrum.effective_rank(values),
    "stable_rank": spectrum.stable_rank,
    "anisotropy": lambda values, trace: spectrum.top_share(values, 1, trace),
}


def _measured(state: State, config: Config) -> _Measured:
    found = spectrum.resolve(state, config.precision)
    values = torch.where(found.values > found.floor, found.values, 0.0)
    kept = min(config.components or SHOWN, found.rank)
    numbers = {name: measure(values, found.trace) for name, measure in NUMBERS.items()}
    numbers["participation_ratio_unbiased"] = spectrum.participation_ratio_of(state, values, found.trace)
    return _Measured(numbers, values[:kept], found.vectors[:kept])


def _most(name: str, width: int) -> float:
    """What a number cannot exceed."""
    known = {"participation_ratio": width, "effective_rank": width, "stable_rank": width, "anisotropy": 1}
    return float(known.get(name, math.inf))


def _independent(values: list[jackknife.Estimate]) -> float | None:
    """The variance of a Gaussian log eigenvalue is 2 / n."""
    return 2 / values[0].error ** 2 if values and values[0].error > 0 else None


def _arrays(whole: _Measured, values: list[jackknife.Estimate], k: int) -> Arrays:
    arrays = {
        "eigenvalue": whole.values[:k],
        "eigenvalue_low": whole.values.new_tensor([value.low for value in values]),
        "eigenvalue_high": whole.values.new_tensor([value.high for value in values]),
        "components": whole.vectors[:k].contiguous(),
    }
    return {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


def _caveats(groups: int, config: Config) -> tuple[str, ...]:
    matched = "eigenvalues are matched by rank: where two nearly coincide, intervals are those of the larger and of the smaller"
    return (matched, *grouped_moments.caveats(groups, config.groups))

"""A power law through few points, with an interval for its exponent."""

import math
from typing import NamedTuple

from jaxtyping import Float64
from scipy.stats import t as student
from torch import Tensor


class PowerLaw(NamedTuple):
    """y = factor x^exponent; bounds are NaN for two points."""

    factor: float
    exponent: float
    low: float
    high: float
    r_squared: float
    """Of the logarithms; NaN where y does not vary."""


def fit(x: Float64[Tensor, " point"], y: Float64[Tensor, " point"], confidence: float) -> PowerLaw:
    """Least squares of log y on log x, with Student's t for the exponent.

    Args:
        x: positive, at least two different ones.
        y: positive; errors of its logarithm are taken as independent and equal.
        confidence: of the interval.
    """
    u, v = x.log(), y.log()
    apart, rise = u - u.mean(), v - v.mean()
    spread, free = float(apart.square().sum()), len(x) - 2
    exponent = float(apart @ rise) / spread
    left, total = float((rise - exponent * apart).square().sum()), float(rise.square().sum())
    reach = math.nan
    if free > 0:
        reach = float(student.ppf(0.5 + confidence / 2, free)) * math.sqrt(left / free / spread)
    return PowerLaw(
        factor=math.exp(float(v.mean()) - exponent * float(u.mean())),
        exponent=exponent,
        low=exponent - reach,
        high=exponent + reach,
        r_squared=1 - left / total if total > 0 else math.nan,
    )

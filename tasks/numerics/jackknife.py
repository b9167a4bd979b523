"""Intervals from leaving groups out: right where rows of one group depend on each other, as tokens of one text do.

With G groups and the estimate t_g without group g, the variance of an estimate t of all is (G - 1) / G sum (t_g - mean)^2 and its bias
(G - 1) (mean - t) (Quenouille 1956, Tukey 1958; groups: Busing, Meijer, van der Leeden, Statistics and Computing 9 (1999) 3).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor


class Estimate(NamedTuple):
    """A positive number with its uncertainty; bounds are NaN where groups do not tell them."""

    value: float
    """Of all rows."""
    corrected: float
    """Without the first order of its bias."""
    error: float
    """Standard error of its logarithm, or of log(value / (most - value))."""
    low: float
    high: float


def estimate(whole: float, without: Sequence[float], confidence: float, most: float = math.inf) -> Estimate:
    """A positive number, from its values without each group; the interval is that of its logarithm, with Student's t.

    Args:
        whole: of all rows.
        without: the same without each group.
        confidence: of the interval.
        most: what the number cannot exceed: the interval is then that of log(value / (most - value)), and ends below. Where rounding puts
            a value there or above, it is that of the logarithm, cut off.
    """
    groups = len(without)
    if groups < 2 or not whole > 0 or not all(value > 0 and math.isfinite(value) for value in without):
        return Estimate(whole, math.nan, math.nan, math.nan, math.nan)
    top = most if max(whole, *without) < most else math.inf
    own = math.log(whole) - math.log1p(-whole / top)
    rest = torch.tensor(without, dtype=torch.float64)
    logs = rest.log() - torch.log1p(-rest / top)
    centre = float(logs.mean())
    error = math.sqrt((groups - 1) / groups * float((logs - centre).square().sum()))
    corrected = own - (groups - 1) * (centre - own)
    reach = float(student.ppf(0.5 + confidence / 2, groups - 1)) * error
    return Estimate(
        whole,
        min(most, _back(corrected, top)),
        error,
        min(most, _back(own - reach, top)),
        min(most, _back(own + reach, top)),
    )


def _back(logarithm: float, top: float) -> float:
    """Infinite, or `top`, where groups tell nothing, rather than an error."""
    return math.exp(logarithm) / (1 + math.exp(logarithm) / top) if logarithm < 700 else top


def spread(whole: Tensor, without: Sequence[Tensor]) -> float:
    """Expected sum of squared sines between a subspace and that of endless rows, from those without each group.

    Args:
        whole: [component, feature], orthonormal rows, of all rows.
        without: the same without each group.
    """
    groups, k = len(without), len(whole)
    sines = [k - float((whole @ other.T).square().sum()) for other in without]
    return (groups - 1) / groups * max(0.0, sum(sines)) if groups > 1 else math.nan

"""A proportion over rows that come in groups, with an interval that knows that rows of a group are alike."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor


class Proportion(NamedTuple):
    """A share of rows, and where the true one lies."""

    value: float
    low: float
    high: float
    effective: float
    """Independent rows that would know as much."""


def grouped(
    hits: Int64[Tensor, " group"], rows: Int64[Tensor, " group"], confidence: float, independent: float = 0.0
) -> Proportion:
    """The share of hits among rows, with rows of a group allowed to depend on each other in any way.

    The variance is that of a ratio of sums over groups (linearised); it gives the effective number of rows, which
    Wilson's interval is taken for. Without any variance, as when all rows hit, every group counts as one row, or each of what is
    known to be independent.

    Args:
        hits: of each group.
        rows: of each group; groups without rows are passed over.
        confidence: probability that the interval holds the true share.
        independent: samples that groups were dealt from, which do not depend on each other.

    Returns:
        NaN everywhere when there are no rows.
    """
    hits, rows = hits[rows > 0].double(), rows[rows > 0].double()
    groups, total = len(rows), float(rows.sum())
    if groups == 0:
        return Proportion(math.nan, math.nan, math.nan, 0.0)
    value = float(hits.sum()) / total
    variance = math.inf
    if groups > 1:
        variance = float((hits - value * rows).square().sum()) / total**2 * groups / (groups - 1)
    effective = (
        max(float(groups), min(total, independent))
        if variance == 0
        else min(total, value * (1 - value) / variance)
    )
    effective = max(1.0, effective)
    low, high = wilson(value, effective, confidence)
    return Proportion(value, low, high, effective)


def wilson(value: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion seen in n independent rows (Wilson, JASA 22 (1927) 209)."""
    z = float(torch.special.ndtri(torch.tensor(0.5 + confidence / 2, dtype=torch.float64)))
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)

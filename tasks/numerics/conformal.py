"""Split-conformal p-values of scores, thresholds for a wanted false-alarm rate, and discoveries at a false discovery rate.

A score is larger for a row that is more anomalous. Calibration scores are of rows that the score was not fitted to and that are
exchangeable with the normal rows to be judged. p = (1 + calibration scores at least as large) / (n + 1) takes n + 1 values, the least of
them 1 / (n + 1), so counts of these values are all that is kept of any number of rows, and procedures that sort p-values are exact from
them.

Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005): p-values. Vovk, Conditional validity of inductive conformal
predictors, ACML (2012): the Beta law of a threshold's rate. Bates, Candes, Lei, Romano, Sesia, Testing for outliers with conformal
p-values, Annals of Statistics 51 (2023) 149: p-values of one calibration set depend on each other so that Benjamini-Hochberg holds.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.special import digamma, logsumexp
from scipy.stats import beta, betabinom
from torch import Tensor

Procedure = Literal["bh", "by"]
"""Benjamini, Hochberg, JRSS B 57 (1995) 289; Benjamini, Yekutieli, Annals of Statistics 29 (2001) 1165, for any dependence."""


ROUNDING = 1e-12
"""Share by which a p-value may exceed its level, which it then equals but for the rounding of both."""


MOST_TERMS, SOME_TERMS = 1 << 20, 1 << 12
"""Summed for a small chance at most, and together."""
NEGLIGIBLE = -46.0
"""Logarithm of the share of a sum below which what follows is left out: they fall."""


class Threshold(NamedTuple):
    """A row is flagged when its score is larger."""

    value: float
    """Infinite where calibration rows are too few: nothing is flagged."""
    rank: int
    """Values that p can take up to the wanted rate."""
    low: float
    """Of the rate at which normal rows are flagged, given the calibration rows: its chance is Beta(rank, n + 1 - rank). Scores that tie
    make it smaller."""
    high: float


class Discoveries(NamedTuple):
    """Rows that are told to be anomalous together."""

    n: int
    threshold: float
    """The largest p-value among them; 0 where there are none."""


def p_values(
    score: Float64[Tensor, " row"], calibration: Float64[Tensor, " scored"]
) -> Float64[Tensor, " row"]:
    """In (0, 1], each a quotient of whole numbers rounded once; ties count against the row.

    Args:
        score: no NaN.
        calibration: ascending, no NaN; may be empty, all p-values are then 1.

    Cost: O(row log scored).
    """
    n = len(calibration)
    at_least = n - torch.searchsorted(calibration, score.contiguous(), right=False)
    return (1 + at_least).double() / (n + 1)


def counted(p: Float64[Tensor, " row"], n: int) -> Int64[Tensor, " value"]:
    """int64 [n + 1]: rows of each value that a p-value with n calibration scores can take, ascending. Counts of parts add up."""
    return torch.bincount((p * (n + 1)).round().long() - 1, minlength=n + 1)


def values(n: int) -> Float64[Tensor, " value"]:
    """Those that a p-value with n calibration scores can take, ascending, with the bits of `p_values`."""
    return torch.arange(1, n + 2).double() / (n + 1)


def rank(alpha: float, n: int) -> int:
    """How many values of p lie at or below a rate, as their float64 compare with it."""
    found = math.floor(alpha * (n + 1))
    if (found + 1) / (n + 1) <= alpha:
        return found + 1
    return found - 1 if found / (n + 1) > alpha else found


def threshold(calibration: Float64[Tensor, " scored"], alpha: float, confidence: float) -> Threshold:
    """The ceil((1 - alpha) (n + 1))-th smallest calibration score: larger scores are those with p <= alpha.

    Args:
        calibration: ascending.
        alpha: wanted rate of false alarms, in (0, 1).
        confidence: probability that the interval holds the rate.
    """
    n, found = len(calibration), rank(alpha, len(calibration))
    if not found:
        return Threshold(math.inf, 0, 0.0, 0.0)
    low, high = beta.ppf([0.5 - confidence / 2, 0.5 + confidence / 2], found, n + 1 - found)
    return Threshold(float(calibration[n - found]), found, float(low), float(high))


def chance_of(flagged: int, rows: int, rank: int, n: int) -> float:
    """That so many of some normal rows or more lie beyond a threshold.

    The rate at which normal rows do is Beta(rank, n + 1 - rank) by the draw of n calibration rows, so that their number is beta-binomial.
    Ties make it smaller.
    """
    if not flagged:
        return 1.0
    law = betabinom(rows, rank, n + 1 - rank)
    if rows > MOST_TERMS or flagged <= law.mean():
        return float(law.sf(flagged - 1))
    total = -math.inf
    for first in range(flagged, rows + 1, SOME_TERMS):  # sf has no digits in the tail
        some = float(logsumexp(law.logpmf(np.arange(first, min(first + SOME_TERMS, rows + 1)))))
        total = float(np.logaddexp(total, some))
        if some < total + NEGLIGIBLE:
            break
    return math.exp(total)


def least_rows(alpha: float) -> int:
    """Fewest calibration rows with which a p-value can be as small as a rate."""
    n = max(0, math.ceil(1 / alpha) - 2)
    while not rank(alpha, n):
        n += 1
    return n


def penalty(rows: int, procedure: Procedure) -> float:
    """What a procedure divides its level by: 1, or the harmonic number of the rows."""
    return float(digamma(rows + 1) + np.euler_gamma) if procedure == "by" and rows else 1.0


def discoveries(
    p: Float64[Tensor, " value"], counts: Int64[Tensor, " value"], q: float, procedure: Procedure
) -> Discoveries:
    """The largest set of smallest p-values whose largest is at most q / penalty times the set's share of all rows.

    Args:
        p: in any order; may repeat, where several calibrations are laid together.
        counts: rows of each.
        q: wanted share of false ones among discoveries, in expectation.
        procedure: see `Procedure`.
    """
    value, place = torch.unique(p, return_inverse=True)
    up_to = torch.zeros_like(value, dtype=torch.int64).index_add(0, place, counts).cumsum(0)
    rows = int(up_to[-1]) if len(up_to) else 0
    kept = (up_to > 0) & (value * rows * penalty(rows, procedure) <= q * up_to.double() * (1 + ROUNDING))
    if not bool(kept.any()):
        return Discoveries(0, 0.0)
    last = torch.nonzero(kept)[-1]
    reached = value[up_to == up_to[last]][0]  # a larger value that no row has is none of theirs
    return Discoveries(int(up_to[last]), float(reached))


def fewest_discoveries(rows: int, n: int, q: float, procedure: Procedure) -> int:
    """How many of the rows must have the smallest possible p-value for any to be discovered; more than rows: none can be."""
    return max(1, math.ceil(rows * penalty(rows, procedure) / (q * (n + 1)) * (1 - ROUNDING)))


def rows_to_discover(found: int, rows: int, q: float, procedure: Procedure) -> int:
    """Calibration rows with which so few of the rows can be discovered."""
    return math.ceil(rows * penalty(rows, procedure) / (q * found) * (1 - ROUNDING)) - 1

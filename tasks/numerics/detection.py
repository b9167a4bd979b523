"""How well scores tell anomalous rows from normal ones: exact from the rows of each class at every distinct score, however many tie.

A larger score is more anomalous. Shares of found and false alarms carry what counts as positive in their name, as published numbers do not
agree on it. The counts may be those of bins: numbers are then exact for scores that are rounded to them, and `rounding` bounds the area
under the curve of the scores themselves.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


class Counts(NamedTuple):
    """Rows at each distinct score."""

    score: Float64[Tensor, " value"]
    """Ascending."""
    anomalous: Int64[Tensor, " value"]
    normal: Int64[Tensor, " value"]


class Choice(NamedTuple):
    """The threshold with the largest F1; of several the largest."""

    f1: float
    threshold: float
    """A row with a score as large, or larger, is told to be anomalous."""


def counted(score: Float[Tensor, " row"], anomalous: Bool[Tensor, " row"]) -> Counts:
    """The rows at each distinct score. Cost: a sort."""
    value, place = torch.unique(score.double(), return_inverse=True)
    found = torch.bincount(place[anomalous], minlength=len(value))
    return Counts(value, found, torch.bincount(place[~anomalous], minlength=len(value)))


def turned(counts: Counts) -> Counts:
    """With normal rows as what is looked for, and the score's sign changed."""
    return Counts(-counts.score.flip(0), counts.normal.flip(0), counts.anomalous.flip(0))


def auroc(counts: Counts) -> float:
    """The chance that an anomalous row scores higher than a normal one, ties counted half; NaN without rows of both."""
    won = (counts.anomalous.double() * _below(counts.normal)).sum()
    return _over(float(won), float(counts.anomalous.sum()) * float(counts.normal.sum()))


def rounding(counts: Counts) -> float:
    """How far `auroc` of binned scores can be from that of the scores: pairs in one bin count half, and may count nothing or one."""
    tied = (counts.anomalous.double() * counts.normal.double()).sum()
    return _over(float(tied) / 2, float(counts.anomalous.sum()) * float(counts.normal.sum()))


def auroc_error(counts: Counts) -> float:
    """Standard error of `auroc` for independent rows; NaN with fewer than two rows of either class.

    DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988) 837: the spread of each row's chance against the other class.
    """
    n, m = int(counts.anomalous.sum()), int(counts.normal.sum())
    if min(n, m) < 2:
        return math.nan
    found = _spread(counts.anomalous, _below(counts.normal) / m)
    kept = _spread(counts.normal, _below(counts.anomalous) / n)
    return math.sqrt(found / n + kept / m)


def average_precision(counts: Counts) -> float:
    """Precision at each score, weighed by the share of anomalous rows that it adds; NaN without anomalous rows.

    That of normal rows as positive is this of `turned`.
    """
    found, false = _at_least(counts)
    precision = found / (found + false).clamp(min=1)
    gained = torch.diff(found, prepend=found.new_zeros(1))
    return _over(float((precision * gained).sum()), float(counts.anomalous.sum()))


def false_alarms(counts: Counts, found_share: float) -> float:
    """Share of normal rows that score at least as high as the largest threshold that finds so many of the anomalous ones; NaN without rows
    of both."""
    found, false = _at_least(counts)
    total, others = float(counts.anomalous.sum()), float(counts.normal.sum())
    if not total or not others:
        return math.nan
    place = int(torch.nonzero(found / total >= found_share)[0])
    return float(false[place]) / others


def best_f1(counts: Counts) -> Choice:
    """Over all thresholds at scores that occur; the labels are in sight, so that on other rows it is lower. NaN without anomalous rows."""
    found, false = _at_least(counts)
    total = float(counts.anomalous.sum())
    if not total:
        return Choice(math.nan, math.nan)
    f1 = 2 * found / (total + found + false)
    place = int(f1.argmax())
    return Choice(float(f1[place]), float(counts.score.flip(0)[place]))


def _at_least(counts: Counts) -> tuple[Tensor, Tensor]:
    """float64 [value] each: anomalous and normal rows that score at least as high as each score, from the highest."""
    return counts.anomalous.flip(0).cumsum(0).double(), counts.normal.flip(0).cumsum(0).double()


def _below(rows: Tensor) -> Tensor:
    """float64 [value]: rows below each score, and half of those at it."""
    return rows.cumsum(0).double() - rows.double() / 2


def _spread(rows: Tensor, chance: Tensor) -> float:
    """Variance over rows, of which there are some at each value."""
    n = float(rows.sum())
    mean = (rows * chance).sum() / n
    return float((rows * (chance - mean).square()).sum() / (n - 1))


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan

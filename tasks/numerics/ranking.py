"""How well a score tells two classes apart (area under the ROC curve), from histograms: mergeable, and with the error that bins make."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

BINS = 8192


class Area(NamedTuple):
    """Pairs of a row of each class."""

    value: float
    """Chance that the score of the second class is larger, equal ones counted half; NaN without pairs."""
    tied: float
    """Share of pairs in one bin: the exact area is within half of this."""


def histogram(
    score: Float64[Tensor, " row"], code: Int64[Tensor, " row"], classes: int, low: float, high: float
) -> Int64[Tensor, "class bin"]:
    """Rows of each class in equal bins between two ends; what lies outside goes into the outer ones."""
    place = ((score - low) / (high - low) * BINS).clamp(0, BINS - 1).long()
    return torch.bincount(code * BINS + place, minlength=classes * BINS).view(classes, BINS)


def area(counts: Int64[Tensor, "fold class bin"]) -> Area:
    """Over pairs inside each fold, all alike; classes 0 and 1.

    Cost: O(fold bin).
    """
    low, high = counts[:, 0].double(), counts[:, 1].double()
    pairs = float((low.sum(1) * high.sum(1)).sum())
    if pairs == 0:
        return Area(math.nan, math.nan)
    below = low.cumsum(1) - low
    tied = float((low * high).sum())
    return Area((float((below * high).sum()) + tied / 2) / pairs, tied / pairs)

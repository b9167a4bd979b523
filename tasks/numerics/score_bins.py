"""Rows of two classes at each score, while rows stream by: exact while the distinct scores fit, in bins of the scores' bits beyond.

A float64's bits are a whole number in the order of the floats; where distinct scores are too many, last bits are dropped from all of them,
as few as make them fit. How many are dropped, and all counts, are the same for any parts and any order. A bin is as wide as a share
2^(dropped - 52) of its scores at most, so that bins are finest where scores are small.
"""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tasks.numerics.detection import Counts

Bins = dict[str, Tensor]
"""`key` [place] int64 ascending, `anomalous` and `normal` [place] int64, and `dropped` int64: bits. Free places hold the largest key."""
FREE = torch.iinfo(torch.int64).max
LEAST = torch.iinfo(torch.int64).min
INFINITE = 0x7FF << 52
"""Key of the largest score."""


def of_rows(score: Float64[Tensor, " row"], anomalous: Bool[Tensor, " row"], size: int) -> Bins:
    """The counts of some rows.

    Args:
        score: no NaN.
        anomalous: the class of each.
        size: places.
    """
    found = torch.stack([anomalous, ~anomalous]).long()
    return _fitted(_keys(score), found, 0, size)


def merge(a: Bins, b: Bins) -> Bins:
    """The counts of both."""
    dropped = max(int(a["dropped"]), int(b["dropped"]))
    parts = [(bins["key"] < FREE, bins) for bins in (a, b)]
    key = torch.cat([bins["key"][some] >> (dropped - int(bins["dropped"])) for some, bins in parts])
    found = torch.cat([torch.stack([bins["anomalous"], bins["normal"]])[:, some] for some, bins in parts], 1)
    return _fitted(key, found, dropped, len(a["key"]))


def counts(bins: Bins) -> Counts:
    """Rows at each score, or at the least score of each bin: numbers of thresholds are those of thresholds there."""
    some = bins["key"] < FREE
    score = _scores(bins["key"][some] << bins["dropped"])
    return Counts(score, bins["anomalous"][some], bins["normal"][some])


def _fitted(key: Int64[Tensor, " row"], found: Int64[Tensor, "class row"], dropped: int, size: int) -> Bins:
    """Added up by key, in as many places as there are."""
    value, place = torch.unique(key, return_inverse=True)
    found = found.new_zeros(2, len(value)).index_add(1, place, found)
    while len(value) > size:
        value, place = torch.unique_consecutive(value >> 1, return_inverse=True)
        found, dropped = found.new_zeros(2, len(value)).index_add(1, place, found), dropped + 1
    free = found.new_zeros(2, size - len(value))
    found = torch.cat([found, free], 1)
    return {
        "key": torch.cat([value, torch.full_like(free[0], FREE)]),
        "anomalous": found[0].clone(),
        "normal": found[1].clone(),
        "dropped": torch.tensor(dropped, device=key.device),
    }


def _keys(score: Tensor) -> Tensor:
    """int64: in the order of the scores; both zeros are 0."""
    bits = score.contiguous().view(torch.int64)
    return torch.where(bits < 0, LEAST - bits, bits)


def _scores(key: Tensor) -> Tensor:
    """float64: the scores of keys; what lies below minus infinity is that."""
    key = key.clamp(min=-INFINITE)
    return torch.where(key < 0, LEAST - key, key).view(torch.float64)

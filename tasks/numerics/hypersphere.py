"""Means over pairs of directions: how near those of a group lie (alignment), and how evenly all are spread (uniformity).

Alignment is the mean of |u - v|^a over pairs of one group, uniformity the logarithm of the mean of exp(-t |u - v|^2) over all pairs. Of
uniform directions in d dimensions, |u - v|^2 / 4 follows the beta law of (d - 1) / 2 and (d - 1) / 2, and the mean of exp(2 t u.v) is
0F1(d / 2; t^2).

Wang, Isola, ICML 2020.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from scipy.special import gammaln, logsumexp
from torch import Tensor

CHUNK = 512
"""Rows of pairs that are worked on at once."""


class Parts(NamedTuple):
    """Means over pairs of different rows, for each part of the rows; NaN where a part has no such pair."""

    alignment: Float64[Tensor, " part"]
    """Pairs alike."""
    alignment_groups: Float64[Tensor, " part"]
    """Mean over groups, of two rows or more, of the mean over their pairs."""
    distance: Float64[Tensor, " part"]
    """Mean of |u - v|^a over all pairs."""
    uniformity: Float64[Tensor, " part"]
    n_positive: Float64[Tensor, " part"]
    """Pairs of one group."""


def over_pairs(
    distance: Float64[Tensor, "row row"],
    group: Int64[Tensor, " row"],
    part: Float64[Tensor, "row part"],
    power: float,
    t: float,
) -> Parts:
    """All means, of any parts of the rows at once.

    Args:
        distance: between directions, symmetric.
        group: of each row; one with a negative group has no partner.
        part: 1 where a row belongs to a part, else 0.
        power: a.
        t: of uniformity.

    Cost: 6 row^2 part flops, and four times 8 * 512 row bytes.
    """
    names, place = torch.unique(group, return_inverse=True)
    near, all_pairs, potential, members = (torch.zeros_like(part) for _ in range(4))
    for low in range(0, len(distance), CHUNK):
        some = slice(low, low + CHUNK)
        raised, row = distance[some] ** power, torch.arange(len(distance), device=distance.device)
        other = row[some, None] != row
        same = other & (group[some, None] == group) & (group[some, None] >= 0)
        near[some] = (raised * same) @ part
        members[some] = same.double() @ part
        all_pairs[some] = raised @ part
        potential[some] = (torch.exp(-t * distance[some].square()) * other) @ part
    n = part.sum(0)
    pairs = n * (n - 1)
    per_group = [
        (v * part).new_zeros(len(names), part.shape[1]).index_add_(0, place, v * part)
        for v in (near, members)
    ]
    there = per_group[1] > 0
    means = torch.where(there, per_group[0] / per_group[1], 0.0).sum(0) / there.sum(0)
    return Parts(
        per_group[0].sum(0) / per_group[1].sum(0),
        means,
        (all_pairs * part).sum(0) / pairs,
        ((potential * part).sum(0) / pairs).log(),
        per_group[1].sum(0) / 2,
    )


def distance_of_uniform(width: int, power: float) -> float:
    """Mean of |u - v|^power over pairs of uniform directions: 2 for the square, in any dimension."""
    if width == 1:
        return math.pow(2.0, power) / 2
    a = (width - 1) / 2
    logarithm = gammaln(a + power / 2) + gammaln(2 * a) - gammaln(a) - gammaln(2 * a + power / 2)
    return math.exp(power * math.log(2) + float(logarithm))


def uniformity_of_uniform(width: int, t: float) -> float:
    """ln of the mean of exp(-t |u - v|^2) over uniform directions: the least that endless rows can have.

    The series of 0F1 is summed in logarithms, so that no t overflows.
    """
    k = torch.arange(math.ceil(4 * t) + 60, dtype=torch.float64).numpy()
    terms = 2 * k * math.log(t) - gammaln(k + 1) - gammaln(width / 2 + k) + gammaln(width / 2)
    total: float = logsumexp(terms)
    return total - 2 * t

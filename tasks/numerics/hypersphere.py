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
    """Over pairs that belong together, all alike."""
    alignment_groups: Float64[Tensor, " part"]
    """Mean over groups that hold such pairs of the mean over them."""
    distance: Float64[Tensor, " part"]
    """Mean of |u - v|^a over pairs of different samples."""
    uniformity: Float64[Tensor, " part"]
    """Of the same pairs."""
    n_positive: Float64[Tensor, " part"]
    """Pairs that belong together."""
    n_alone: int
    """Rows, of the first part, that belong to no other."""


def over_pairs(
    distance: Float64[Tensor, "row row"],
    sample: Int64[Tensor, " row"],
    code: Int64[Tensor, " row"] | None,
    part: Float64[Tensor, "row part"],
    power: float,
    t: float,
) -> Parts:
    """All means, of any parts of the rows at once.

    Rows of one sample depend on each other, so that pairs of different samples tell how rows are spread.

    Args:
        distance: between directions, symmetric.
        sample: of each row.
        code: rows of different samples with one code belong together; one with a negative code belongs to none. None: rows of one sample.
        part: 1 where a row belongs to a part, else 0.
        power: a.
        t: of uniformity.

    Cost: 10 row^2 part flops, and five times 8 * 512 row bytes.
    """
    names, place = torch.unique(sample if code is None else code, return_inverse=True)
    near, members, far, kernel, others = (torch.zeros_like(part) for _ in range(5))
    row = torch.arange(len(distance), device=distance.device)
    for low in range(0, len(distance), CHUNK):
        some = slice(low, low + CHUNK)
        raised, apart = distance[some] ** power, sample[some, None] != sample
        same = (
            (~apart & (row[some, None] != row))
            if code is None
            else apart & (code[some, None] == code) & (code >= 0)
        )
        near[some], members[some] = (raised * same) @ part, same.double() @ part
        far[some], others[some] = (raised * apart) @ part, apart.double() @ part
        kernel[some] = (torch.exp(-t * distance[some].square()) * apart) @ part
    sums, counts = (
        part.new_zeros(len(names), part.shape[1]).index_add_(0, place, v * part) for v in (near, members)
    )
    there = counts > 0
    pairs = (others * part).sum(0)
    return Parts(
        sums.sum(0) / counts.sum(0),
        torch.where(there, sums / counts, 0.0).sum(0) / there.sum(0),
        (far * part).sum(0) / pairs,
        ((kernel * part).sum(0) / pairs).log(),
        counts.sum(0) / 2,
        int((members[:, 0] == 0).sum()),
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

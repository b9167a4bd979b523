"""What features that are active together add to each other's readout, and whether features that go together lie together.

A row of codes c stands for x = sum_j c_j d_j. Its readout along d_i is c_i |d_i|^2 + r_i with the interference r_i = sum over j != i of
c_j <d_j, d_i>: constructive where it has the sign of c_i. Over rows with second moments M about the origin and the Gram matrix G,
mean sum_i c_i r_i = sum over i != j of G_ij M_ij, which reads no row again; signs do.

With directions of the same lengths but independent and uniform in m dimensions, cosines have mean 0 and variance 1 / m and those of
different pairs are not correlated. So the sum has mean 0 and variance 2 / m sum over i != j of |d_i|^2 |d_j|^2 M_ij^2, r_i^2 has mean
|d_i|^2 / m sum over j != i of c_j^2 |d_j|^2, and r_i is as often constructive as not.
"""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

BLOCK_ELEMENTS = 1 << 22
"""Rows times features of one product, so that the scratch stays below some hundred MB."""
TIED = 10
"""Decimals beyond which cosines and correlations are rounding: equal ones must share a rank."""


def of_rows(
    codes: Float[Tensor, "row feature"],
    directions: Float[Tensor, "feature dimension"],
    share: Float64[Tensor, "group row"],
) -> dict[str, Float64[Tensor, "group feature"]]:
    """Sums over rows, weighted by their share in each group.

    Args:
        codes: in the dtype of the directions, in which products are taken.
        directions: of features.
        share: weight of the row in its group, 0 in the others.

    Returns:
        `helped` sum of max(0, c_i r_i), `met` of |c_i r_i|; over rows where the feature is not active `quiet` of r_i^2, and `passed`
        of the same where r_i > 0.

    Cost: 4 row feature (dimension + 2 group) flops.
    """
    exact = codes.double()
    r = ((codes @ directions) @ directions.T).double().sub_(exact * directions.double().square().sum(1))
    along = exact * r
    quiet = r.square().masked_fill_(codes != 0, 0.0)
    return {
        "helped": share @ along.clamp(min=0),
        "met": share @ along.abs_(),
        "quiet": share @ quiet,
        "passed": share @ quiet.masked_fill_(r <= 0, 0.0),
    }


def rearranged(
    directions: Float64[Tensor, "feature dimension"], order: Int64[Tensor, " feature"]
) -> Float64[Tensor, "feature dimension"]:
    """Each feature with the direction of another one, and its own length."""
    unit, length = unit_and_length(directions)
    return unit[order] * length[:, None]


def unit_and_length(
    directions: Float64[Tensor, "feature dimension"],
) -> tuple[Float64[Tensor, "feature dimension"], Float64[Tensor, " feature"]]:
    """Directions of length 1, at any scale; 0 where they have none."""
    length = torch.linalg.vector_norm(directions, dim=1)
    return directions / length.where(length > 0, 1.0)[:, None], length


def orders(
    some: Int64[Tensor, " part"], features: int, draws: int, seed: int
) -> Int64[Tensor, "draw feature"]:
    """Permutations of some features, the others staying where they are."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.arange(features, device=some.device).repeat(draws, 1)
    for order in found:
        order[some] = some[torch.randperm(len(some), generator=generator).to(some.device)]
    return found


def net(
    gram: Float64[Tensor, "feature feature"], second: Float64[Tensor, "feature feature"]
) -> Float64[Tensor, " feature"]:
    """Mean of c_i r_i of each feature, from second moments about the origin."""
    product = gram * second
    return product.sum(1) - product.diagonal()


def net_deviation(
    length: Float64[Tensor, " feature"], second: Float64[Tensor, "feature feature"], dimension: int
) -> float:
    """Standard deviation of the sum of `net` over random directions of these lengths."""
    scaled = (second * torch.outer(length, length)).square()
    return math.sqrt(2 / dimension * float(scaled.sum() - scaled.trace()))


def permuted_sum(
    a: Float64[Tensor, "feature feature"], b: Float64[Tensor, "feature feature"]
) -> tuple[float, float]:
    """Mean and standard deviation, over all permutations p of features, of the sum over i != j of a_p(i)p(j) b_ij.

    Both are symmetric; their diagonals have no part in it. Mantel, Cancer Research 27 (1967) 209. Cost: O(feature^2).
    """
    n = len(a)
    (sum_a, pair_a, star_a, rest_a), (sum_b, pair_b, star_b, rest_b) = _shared(a), _shared(b)
    all_of_them = n * (n - 1)
    mean = sum_a * sum_b / all_of_them
    square = 2 * pair_a * pair_b + 4 * star_a * star_b / max(1, n - 2)
    square += rest_a * rest_b / max(1, (n - 2) * (n - 3))
    return mean, math.sqrt(max(0.0, square / all_of_them - mean**2))


def _shared(m: Float64[Tensor, "feature feature"]) -> tuple[float, float, float, float]:
    """The sum, and sums of products of two entries that share both features, one, and none."""
    rows, diagonal = m.sum(1) - m.diagonal(), m.diagonal()
    total = float(rows.sum())
    pair = float(m.square().sum() - diagonal.square().sum())
    star = float(rows.square().sum())
    return total, pair, star - pair, total**2 + 2 * pair - 4 * star


def correlations(a: Float64[Tensor, " pair"], b: Float64[Tensor, " pair"]) -> tuple[float, float]:
    """Spearman's and Pearson's, over pairs that have both numbers; NaN if these do not vary. Cost: O(pair log pair)."""
    kept = a.isfinite() & b.isfinite()
    if int(kept.sum()) < 2:
        return math.nan, math.nan
    a, b = torch.round(a[kept], decimals=TIED), torch.round(b[kept], decimals=TIED)
    return _pearson(_ranks(a), _ranks(b)), _pearson(a, b)


def _pearson(a: Float64[Tensor, " pair"], b: Float64[Tensor, " pair"]) -> float:
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def _ranks(values: Float64[Tensor, " pair"]) -> Float64[Tensor, " pair"]:
    """Mean ranks of equal values."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    mean: Tensor = (counts.cumsum(0) - (counts - 1) / 2.0).double()
    return mean[place]

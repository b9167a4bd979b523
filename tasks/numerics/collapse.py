"""How far rows have collapsed onto the means of their classes, and how these means lie: measures of neural collapse.

All functions take numbers of classes (their means, weights and scatter), so that they cost nothing in rows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from scipy.special import digamma
from torch import Tensor

from schemas.errors import MethodError

Means = Float64[Tensor, "class feature"]
Vector = Float64[Tensor, " class"]
Matrix = Float64[Tensor, "feature feature"]
EPS = torch.finfo(torch.float64).eps
ROUNDINGS = 8
"""Of each number of a row, in the network that made it."""
CHUNK = 1 << 18
"""Numbers of the differences that are taken at once: they stay in the cache, which is ten times as fast as 1 << 22."""


class Between(NamedTuple):
    """Class means about their centre, each times the root of its share: their Gram matrix is the scatter between classes."""

    rows: Means
    centre: Float64[Tensor, " feature"]
    values: Float64[Tensor, " order"]
    """Singular values, descending."""
    vectors: Float64[Tensor, "order feature"]
    rank: int
    """Values above the rounding of float64: at most min(classes - 1, features)."""
    noise: float
    """What rounding alone makes of measures that are 0, relative to the means' spread."""

    @property
    def trace(self) -> float:
        """Of the scatter between classes."""
        return float(self.rows.square().sum())

    def known(self, eps: float) -> int:
        """Values above what rows that are rounded to `eps` make of directions in which class means agree."""
        size = float(self.centre.norm())
        floor = eps * (max(self.rows.shape) * float(self.values[0]) + ROUNDINGS * size)
        return int((self.values[: self.rank] > floor).sum())


def between(mean: Means, share: Vector) -> Between:
    """The scatter between classes, by shares that sum to 1.

    Cost: O(class feature min(class, feature)).
    """
    shift = mean.mean(0)
    offset = share @ (mean - shift)
    rows = share.sqrt()[:, None] * (mean - shift - offset)
    classes, width = mean.shape
    small = torch.linalg.qr(rows, mode="r").R if classes > width else rows
    _, values, vectors = torch.linalg.svd(small, full_matrices=False)
    centre = shift + offset
    floor = max(classes, width) * EPS * (float(values[0]) + float(centre.norm()))
    rank = int((values[: min(classes - 1, width)] > floor).sum())
    spread = float(rows.norm())
    noise = 64 * EPS * (1 + float(centre.norm()) / spread) if spread > 0 else math.inf
    return Between(rows, centre, values, vectors, rank, noise)


def within_over_between(within: Matrix, across: Between, directions: int) -> float:
    """tr(W B^+), from so many leading directions of class means; NaN for none."""
    if directions == 0:
        return math.nan
    v = across.vectors[:directions]
    return float((((v @ within) * v).sum(1) / across.values[:directions].square()).sum())


class Explained(NamedTuple):
    """How much of the total scatter lies between classes."""

    trace: float
    """tr(T^+ B), from 0 to the rank of B."""
    rank: int
    """Of T."""


def explained(within: Matrix, across: Between) -> Explained:
    """tr(T^+ B) with T = W + B; `within` is normalised as `across` is.

    Features are scaled to variance 1 first, which changes nothing but rounding; constant ones are left out.

    Cost: O(feature^3 + class feature^2).
    """
    white = whitening(within + across.rows.T @ across.rows, across.centre)
    return Explained(
        float((across.rows @ white).square().sum()) if white.shape[1] else math.nan, white.shape[1]
    )


def whitening(total: Matrix, centre: Float64[Tensor, " feature"]) -> Float64[Tensor, "feature component"]:
    """P with P P^T = T^+, up to the scaling of features to variance 1 before small directions are dropped; constant features give zeros.

    Raises:
        MethodError: if squares have overflown.
    """
    if not bool(total.isfinite().all()):
        raise MethodError("squares of differences between classes overflow; scale the rows")
    there = total.diagonal() > (64 * EPS * centre.abs()).square()
    scale = total.diagonal()[there].rsqrt()
    values, vectors = torch.linalg.eigh(total[there][:, there] * scale * scale[:, None])
    kept = values > 8 * len(values) * EPS * (values[-1] if len(values) else 0)
    white = total.new_zeros((len(total), int(kept.sum())))
    white[there] = scale[:, None] * vectors[:, kept] / values[kept].sqrt()
    return white


def variability_index(found: Explained, rank: int) -> float:
    """1 - tr(T^+ B) / rank(B): 0 where rows are their class's mean; NaN without differences between classes."""
    return max(0.0, 1 - found.trace / rank) if rank else math.nan


def variability_index_at_random(rank_total: int, classes: int, rank: int, rows: float) -> float:
    """What independent rows give whose labels say nothing: about 1 - features / rows for few classes.

    The span of class indicators is then a random space of classes - 1 of the rows - 1 dimensions, the centred features one of rank_total.
    """
    if rank == 0 or rows <= 1:
        return math.nan
    return max(0.0, 1 - rank_total * (classes - 1) / ((rows - 1) * rank))


def etf_distance(across: Between) -> float:
    """|M M^T / |M M^T| - (I - J / K) / sqrt(K - 1)| of K class means about their mean: 0 for a simplex equiangular tight frame.

    `across` must have equal shares. Both matrices share their vectors, so that eigenvalues tell; more classes than features + 1 can not be
    such a frame, and then it is at least sqrt(2 - 2 sqrt(features / (classes - 1))).
    """
    classes = len(across.rows)
    values = across.values[: classes - 1]
    largest = float(values.max()) if len(values) else 0.0
    if largest == 0:
        return math.nan
    values = (
        values / largest
    ).square()  # fourth powers of large or small means would overflow, or be nothing
    norm = float(values.norm())
    target = 1 / math.sqrt(classes - 1)
    missing = max(0, classes - 1 - len(values)) * target**2
    return math.sqrt(float((values / norm - target).square().sum()) + missing)


def variation(values: Vector, share: Vector) -> float:
    """Standard deviation over mean."""
    mean = float((share * values).sum())
    return math.sqrt(float((share * (values - mean).square()).sum())) / mean if mean > 0 else math.nan


class Pairs(NamedTuple):
    """Pairs of classes by their places, first below second."""

    first: Int64[Tensor, " pair"]
    second: Int64[Tensor, " pair"]
    every: bool
    """Whether these are all; else they were drawn with replacement."""


def pairs(classes: int, most: int, seed: int, device: str | torch.device = "cpu") -> Pairs:
    """All pairs of classes if there are no more than `most`, else as many drawn ones."""
    if classes * (classes - 1) // 2 <= most:
        first, second = torch.triu_indices(classes, classes, 1, device=device)
        return Pairs(first, second, True)
    rng = torch.Generator().manual_seed(seed)
    one = torch.randint(0, classes, (most,), generator=rng)
    other = (one + torch.randint(1, classes, (most,), generator=rng)) % classes
    return Pairs(torch.minimum(one, other).to(device), torch.maximum(one, other).to(device), False)


def square_distances(vectors: Means, chosen: Pairs) -> Float64[Tensor, " pair"]:
    """|a - b|^2 of each pair, from differences: exact also for vectors that are close, and 0 where rounding alone tells them apart.

    Cost: pair * feature.
    """
    step = max(1, CHUNK // max(1, vectors.shape[1]))
    parts = zip(torch.split(chosen.first, step), torch.split(chosen.second, step), strict=True)
    found = [(vectors[a] - vectors[b]).square().sum(1) for a, b in parts]
    if not found:
        return vectors.new_zeros(0)
    square = torch.cat(found)
    floor = 64 * EPS * float(torch.linalg.vector_norm(vectors, dim=1).max())
    return square.masked_fill(square <= floor**2, 0.0)


class Directions(NamedTuple):
    """How vectors of length 1 lie to each other."""

    spread: float
    """Standard deviation of cosines over pairs."""
    error: float
    """Mean of |cosine + 1 / (K - 1)|: how far from equally apart."""
    overlap: float
    """Mean of |cosine|: how far from orthogonal."""
    log_distance: float
    """Mean of -ln(distance) over pairs that are not equal."""
    log_spread: float
    """Standard deviation of the same."""


def directions(vectors: Means, chosen: Pairs, noise: float = 0.0) -> Directions:
    """Angles between vectors, those of length zero left out; NaN without a pair.

    Args:
        vectors: one for each class.
        chosen: which are compared.
        noise: lengths, and distances of directions, that rounding alone makes, relative to the vectors' typical length.
    """
    length = torch.linalg.vector_norm(vectors, dim=1)
    least = noise * float(length.square().mean().sqrt())
    some = (length[chosen.first] > least) & (length[chosen.second] > least)
    square = square_distances(
        vectors / length.where(length > 0, 1.0)[:, None],
        Pairs(chosen.first[some], chosen.second[some], chosen.every),
    )
    if len(square) == 0:
        return Directions(*[math.nan] * 5)
    cosine, apart = 1 - square / 2, -square[square > noise**2].log() / 2
    return Directions(
        float(cosine.std(correction=0)),
        float((cosine + 1 / (len(vectors) - 1)).abs().mean()),
        float(cosine.abs().mean()),
        float(apart.mean()) if len(apart) else math.nan,
        float(apart.std(correction=0)) if len(apart) else math.nan,
    )


def log_distance_at_random(width: int) -> float:
    """Mean of -ln(distance) of uniform directions: |a - b|^2 / 4 follows the beta law of (width - 1) / 2 and (width - 1) / 2."""
    a = (width - 1) / 2
    return -(math.log(4) + float(digamma(a) - digamma(2 * a))) / 2 if width > 1 else math.nan


def distance_variance(
    variance: Vector, square: Float64[Tensor, " pair"], chosen: Pairs
) -> Float64[Tensor, " pair"]:
    """(Var_a + Var_b) / (2 |a - b|^2) of each pair: NaN for a class without a variance, infinite for equal means."""
    both = variance[chosen.first] + variance[chosen.second]
    return both / (2 * square)


class Duality(NamedTuple):
    """How a classifier's weights lie to the class means."""

    distance: float
    """|W / |W| - M / |M||, both about their means: 0 if one is the other times a number, sqrt(2) for unrelated ones."""
    alignment: float
    """Mean cosine between a class's weight and mean."""
    spread: float
    """Standard deviation of these cosines."""


def duality(weight: Means, mean: Means) -> Duality:
    """Of weights and means of the same classes, both about the mean over classes."""
    w, m = weight - weight.mean(0), mean - mean.mean(0)
    size = w.norm(), m.norm()
    if not (size[0] > 0 and size[1] > 0):
        return Duality(math.nan, math.nan, math.nan)
    lengths = torch.linalg.vector_norm(w, dim=1) * torch.linalg.vector_norm(m, dim=1)
    cosine = ((w * m).sum(1) / lengths)[lengths > 0]
    distance = float((w / size[0] - m / size[1]).norm())
    return Duality(distance, float(cosine.mean()), float(cosine.std(correction=0)))

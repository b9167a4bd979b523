"""How few bits vectors can be told in at an allowed error, if they were Gaussian, and how many bits given codes take.

A Gaussian vector with variances lambda_k along orthogonal axes is told with a mean squared error D = sum_k min(theta, lambda_k) in
R(D) = 1/2 sum_k max(0, log2(lambda_k / theta)) bits and no fewer: reverse water-filling, theta being the level (Cover, Thomas, Elements
of Information Theory, 2nd edition, theorem 10.3.3). A uniform step sqrt(12 theta) on every coefficient, each coded by its own order-0
entropy, takes 1/2 log2(2 pi e / 12) = 0.2546 bits more for each one whose variance is far above theta, and none for those far below.

For rows that are not Gaussian this is the limit of a model with their variances, and no floor: of all vectors with these variances the
Gaussian ones are the hardest to tell, so that a code may take fewer bits than R(D).
"""

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from schemas.errors import MethodError

Variances = Float64[Tensor, " component"]
SCALAR_LOSS = 0.5 * math.log2(2 * math.pi * math.e / 12)
"""Bits for each coefficient that a uniform step takes beyond R(D) at a small error."""


def distortion(variances: Variances, level: float) -> float:
    """Mean squared error of a vector at a level: sum_k min(level, lambda_k)."""
    return float(variances.clamp(max=level).sum())


def level(variances: Variances, wanted: float, weights: Variances | None = None) -> float:
    """The level at which the mean squared error of a vector is that wanted; the largest variance where it may be as large as their sum.

    Args:
        variances: along orthogonal axes, in any order, not negative.
        wanted: positive.
        weights: positive, how much each variance counts, as where vectors are of several kinds; None: each once.

    Raises:
        MethodError: if the wanted error is not positive, or there is no variance.

    Cost: O(component log component).
    """
    ascending, order = variances.sort()
    if wanted <= 0 or not len(ascending) or ascending[-1] <= 0:
        raise MethodError(
            f"found a wanted squared error of {wanted:g} and a total variance of {float(ascending.sum()):g}; both must be positive"
        )
    counted = torch.ones_like(ascending) if weights is None else weights[order]
    above = counted.flip(0).cumsum(0).flip(0)
    below = (counted * ascending).cumsum(0) - counted * ascending
    levels = (wanted - below) / above
    fits = levels <= ascending
    return float(levels[fits][0]) if bool(fits.any()) else float(ascending[-1])


def rate(variances: Variances, wanted: float) -> float:
    """R(D): bits of a vector told with this mean squared error; 0 where it is allowed to be as large as the sum of variances.

    Raises:
        MethodError: as `level` does.
    """
    theta = level(variances, wanted)
    return float(0.5 * torch.log2((variances / theta).clamp(min=1)).sum())


def gap(variances: Variances, bits: float, reached: float) -> float:
    """Bits per dimension that a code takes beyond R(D) at the error that it reached; negative where rows are easier than Gaussian ones.

    Args:
        variances: of every dimension, zeros included.
        bits: of a vector.
        reached: its mean squared error.

    Raises:
        MethodError: as `level` does.
    """
    return (bits - rate(variances, reached)) / len(variances)


def stepped_error(variances: Variances, bits: float) -> float:
    """Mean squared error of a vector whose coefficients are told in steps of one size in so many bits, for a Gaussian at a small error:
    1/2 log2(lambda_k / theta) + 0.2546 bits for each variance above the level, none for the others.

    At low rates it is too large, as a coefficient near the level takes fewer bits than this.

    Args:
        variances: along orthogonal axes, not all of them 0.
        bits: of a vector.
    """
    low, high = float(variances.max()) * 2.0**-200, float(variances.max())
    for _ in range(200):
        middle = (low * high) ** 0.5
        told = variances[variances > middle]
        takes = float((0.5 * torch.log2(told / middle) + SCALAR_LOSS).sum())
        low, high = (middle, high) if takes > bits else (low, middle)
    return distortion(variances, high)


def entropy(counts: Int64[Tensor, "*component symbol"]) -> Float64[Tensor, "*component"]:
    """Order-0 entropies in bits of symbols that were seen so often; 0 where nothing was seen."""
    total = counts.sum(-1, keepdim=True).clamp(min=1)
    nats: Tensor = torch.special.entr(counts.double() / total).sum(-1)
    return nats / math.log(2)

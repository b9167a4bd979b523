"""Directions of Gaussian rows on which responses depend, by Stein's lemma: no link function is fitted.

For whitened Gaussian rows z and a response y = g(B z), E[y z] = B^T E[grad g] and E[y (z z^T - I)] = B^T E[Hess g] B lie in the span of B's
rows, whatever g is. The first sees no even g, the second no odd one. For other rows they are projections of y on linear and quadratic
functions of z.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def whitening(covariance: Float64[Tensor, "feature feature"], kept: int) -> Float64[Tensor, "feature axis"]:
    """What brings rows to uncorrelated axes of unit variance: the leading eigenvectors, each over the root of its eigenvalue.

    Args:
        covariance: of rows.
        kept: axes, at most; those without variance are left out.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    good = values > max(64, len(covariance)) * torch.finfo(torch.float64).eps * values[0].clamp(min=0)
    root: Tensor = vectors[:, good] * values[good].rsqrt()
    return root


def axes_for(covariance: Float64[Tensor, "feature feature"], share: float, most: int) -> int:
    """Leading axes that hold a share of the variance, at most so many."""
    values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
    within = values.cumsum(0) < share * values.sum() * (1 - 1e-12)
    return max(1, min(int(within.sum()) + 1, most))


def noise_edge(axes: int, columns: int, n: float, order: int, confidence: float) -> float:
    """What the largest singular value of [column, axis] means of n unrelated products of unit variance stays below.

    sqrt(axes) + sqrt(columns) + sqrt(-2 ln(1 - confidence)) over sqrt(n): the expectation and the deviation of Gaussian matrices (Davidson,
    Szarek 2001); a symmetric one, of order 2, deviates by sqrt(2) more. Means of many rows are about Gaussian.
    """
    deviation = math.sqrt(-2 * order * math.log(1 - confidence))
    return (math.sqrt(axes) + math.sqrt(columns) + deviation) / math.sqrt(n)

"""The magnitude of some points at a scale: how many points they effectively are.

With Z_ij = exp(-t d_ij) and weights w that solve Z w = 1, the magnitude is the sum of w (Leinster 2013): 1 where points are near, their
number where they are far. For distinct points of a Euclidean space Z is positive definite. Its growth is exact too:
d log(magnitude) / d log t = t w^T (d * Z) w / sum(w).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics.distances import Distances

STEPS = 20
"""Of the iterations for the extreme eigenvalues."""


class Magnitude(NamedTuple):
    """At a scale; NaN where rounding leaves the matrix without a Cholesky factor."""

    value: float
    growth: float
    """Of the logarithm over that of the scale: the dimension that points show at the scale."""
    condition: float
    """Largest over smallest eigenvalue, from below by iterations; times 1e-16 it is what weights may be off by."""
    weight: Float64[Tensor, " row"]


def magnitude(distance: Distances, scale: float) -> Magnitude:
    """Of distinct points.

    Args:
        distance: without zeros but on the diagonal.
        scale: t, above 0.

    Cost: row^3 / 3 multiplications.
    """
    similarity = torch.exp(-scale * distance)
    factor, failed = torch.linalg.cholesky_ex(similarity)
    ones = torch.ones(len(distance), 1, dtype=torch.float64, device=distance.device)
    if int(failed):
        return Magnitude(math.nan, math.nan, math.inf, ones[:, 0] * math.nan)
    weight = torch.cholesky_solve(ones, factor)[:, 0]
    value = float(weight.sum())
    growth = scale * float(weight @ (distance * similarity) @ weight) / value
    return Magnitude(value, growth, _condition(similarity, factor), weight)


def _condition(matrix: Tensor, factor: Tensor) -> float:
    """By power iteration with the matrix and with its inverse, from a fixed vector."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), 1, dtype=torch.float64, generator=generator).to(matrix.device)
    large = small = start / torch.linalg.vector_norm(start)
    for _ in range(STEPS):
        large = matrix @ large
        large = large / torch.linalg.vector_norm(large)
        small = torch.cholesky_solve(small, factor)
        small = small / torch.linalg.vector_norm(small)
    return float((large.T @ matrix @ large) / (small.T @ matrix @ small))

"""What a random walk looks like to principal component analysis: the null model of every trajectory.

Antognini, Sohl-Dickstein, NeurIPS 2018: the components of a walk of T independent steps in many dimensions are cosines, their shares
of variance 6 / (pi k)^2 for long walks. Exactly, the centred walk's covariance over steps has the eigenvalues (1/4) sin^-2(pi k /
2T).
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def expected_shares(n: int, k: int) -> Float64[Tensor, " component"]:
    """Share of variance of the first k components of a walk of n positions, in infinitely many dimensions.

    Args:
        n: positions, the start included.
        k: components; those beyond n - 1 are 0.
    """
    order = torch.arange(1, n, dtype=torch.float64)
    values = (torch.sin(math.pi * order / (2 * n)) ** -2) / 4
    shares = torch.zeros(k, dtype=torch.float64)
    kept = min(k, n - 1)
    shares[:kept] = values[:kept] / values.sum()
    return shares


def simulated_shares(
    n: int, dimensions: float, k: int, draws: int, seed: int
) -> Float64[Tensor, "draw component"]:
    """Shares of variance of seeded Gaussian walks of n positions with finitely many dimensions.

    Args:
        n: positions.
        dimensions: of each step; rounded, at least 1, and 1,024 at most (more hardly fluctuate).
        k: components.
        draws: walks.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    d = max(1, round(min(1024.0, dimensions)))
    shares = torch.zeros(draws, k, dtype=torch.float64)
    for draw in range(draws):
        walk = torch.randn(n, d, generator=generator, dtype=torch.float64).cumsum(0)
        values = torch.linalg.svdvals(walk - walk.mean(0)).square()
        kept = min(k, len(values))
        shares[draw, :kept] = values[:kept] / values.sum()
    return shares


def cosine(n: int, order: int) -> Float64[Tensor, " row"]:
    """The projection of a walk of n positions on its component of that order (from 1), of length 1."""
    step = torch.arange(n, dtype=torch.float64) + 0.5
    wave = torch.cos(math.pi * order * step / n)
    unit: Tensor = wave / torch.linalg.vector_norm(wave)
    return unit

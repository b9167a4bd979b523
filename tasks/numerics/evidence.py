"""How many components a Gaussian model with noise has, by its evidence.

Minka, Automatic choice of dimensionality for PCA, NIPS 13 (2000), equation 77, with all of its terms, as scikit-learn has it.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def log_evidence(values: Float64[Tensor, " component"], n: int) -> Float64[Tensor, " k"]:
    """Log evidence of 1, 2, ... components (all but one feature at most), up to what they share; Laplace's approximation.

    Args:
        values: all eigenvalues of the covariance, descending and positive.
        n: rows; at least as many as features.

    Cost: O(feature^2).
    """
    d = len(values)
    k = torch.arange(1, d, dtype=torch.float64, device=values.device)
    logs, kept = values.log(), (values.sum() - values.cumsum(0))[:-1]
    noise = (kept / (d - k)).clamp(min=torch.finfo(torch.float64).tiny)
    half = (d - k + 1) / 2
    prior = (torch.special.gammaln(half) - half * math.log(math.pi)).cumsum(0) - k * math.log(2)
    fit = -(n / 2) * (logs.cumsum(0)[:-1] + (d - k) * noise.log())
    free = d * k - k * (k + 1) / 2
    spread = (free + k) / 2 * math.log(2 * math.pi)
    found: Tensor = prior + fit + spread - _curvature(values, noise, n) / 2 - k / 2 * math.log(n)
    return found


def _curvature(values: Tensor, noise: Tensor, n: int) -> Tensor:
    """log |A| of each number of components k: over i <= k and j > i of log n (1 / l_j - 1 / l_i)(lambda_i - lambda_j), where l_j is the
    eigenvalue up to k and the noise beyond."""
    d = len(values)
    k = torch.arange(1, d, dtype=torch.float64, device=values.device)
    apart = (values[:, None] - values[None]).clamp(min=torch.finfo(torch.float64).tiny).log()
    later = torch.ones_like(apart, dtype=torch.bool).triu(1)
    both = torch.where(later, apart, 0.0)
    gaps = both.sum(1).cumsum(0)[:-1]  # lambda_i - lambda_j, for i <= k and any j > i
    logs = values.log()
    # 1 / lambda_j - 1 / lambda_i = (lambda_i - lambda_j) / (lambda_i lambda_j), for i < j <= k
    inside = (both - torch.where(later, logs[:, None] + logs[None], 0.0)).sum(0).cumsum(0)[:-1]
    over = (1 / noise[None] - 1 / values[:, None]).clamp(min=torch.finfo(torch.float64).tiny).log()
    outside = torch.where(torch.ones_like(over, dtype=torch.bool).triu(), over, 0.0).sum(0) * (d - k)
    pairs = k * (k - 1) / 2 + k * (d - k)
    return gaps + inside + outside + pairs * math.log(n)

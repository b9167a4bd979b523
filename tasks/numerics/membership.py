"""How much rows belong together: the doubly stochastic matrix that is nearest to their products, with a price on its entropy.

Of unit codes c the minimum of -<C C^T, G> + smoothing sum G ln G over symmetric matrices whose rows add up to 1 is
G_ij = exp(c_i.c_j / smoothing + f_i + f_j) (Sinkhorn, Knopp 1967; Ding, Tong, Chan, Dai, Ma, Haeffele, arXiv 2301.01805 (2023), section 3).
f <- (f - ln sum_j exp(c_i.c_j / smoothing + f_j)) / 2 has the derivative (I - G) / 2, and G is positive semidefinite, so that errors
halve at least. A step of Newton's ends it, by which gradients pass: they are those of the solution, not of the iterations.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

MOST, ENOUGH = 60, 1e-8
"""Iterations, and the largest error of a row's sum before Newton's step squares it."""


def doubly_stochastic(codes: Float64[Tensor, "row code"], smoothing: float) -> Float64[Tensor, "row row"]:
    """Shares that rows have in each other: symmetric, positive, rows add up to 1.

    Args:
        codes: of length 1.
        smoothing: small leaves each row to itself, large has all rows share alike.

    Cost: 2 row^2 code flops, up to 60 row^2 exponentials, row^3.
    """
    scores = codes @ codes.T / smoothing
    f = _settled(scores.detach())
    share = torch.exp(scores.detach() + f + f[:, None])
    left = f + torch.logsumexp(scores + f, 1)
    jacobian = share + torch.eye(len(f), dtype=f.dtype, device=f.device)
    f = f - torch.linalg.solve(jacobian, left)
    return torch.exp(scores + f + f[:, None])


def alone(membership: Float64[Tensor, "row row"]) -> float:
    """Number of clusters that memberships amount to, sum of G_ij^2: k for k parts with even shares, up to the number of rows."""
    return float(membership.square().sum())


def _settled(scores: Float64[Tensor, "row row"]) -> Float64[Tensor, " row"]:
    f = -torch.logsumexp(scores, 1) / 2
    for _ in range(MOST):
        left = f + torch.logsumexp(scores + f, 1)
        if not len(f) or float(left.abs().max()) < ENOUGH:
            break
        f = f - left / 2
    return f

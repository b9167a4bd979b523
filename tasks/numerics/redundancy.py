"""A linear map whose outputs agree between paired rows and do not repeat each other: redundancy reduction from second moments alone.

Of pairs (x, y), each counted in both orders, with covariance S and cross-covariance P (symmetric), an output a.x has the correlation
C_ij = a_i P a_j / sqrt(a_i S a_i  a_j S a_j) with output j of the partner. The loss is

    sum_i (1 - C_ii)^2 + penalty * sum over i != j of C_ij^2

and reads no row once S and P are known. At the canonical directions of P against S, whose outputs are not correlated, its gradient is zero;
yet there are minima below, in which outputs are slightly correlated. So descent starts beside the leading ones, at a seeded distance.

Zbontar et al., Barlow Twins, ICML 2021.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tasks.numerics.spectrum import signed

BESIDE = 0.1
"""Length of what is added to directions of length 1 at the start."""


class PairMoments(NamedTuple):
    """Of pairs in both orders, about the mean of their rows."""

    mean: Float64[Tensor, " feature"]
    variance: Float64[Tensor, "feature feature"]
    cross: Float64[Tensor, "feature feature"]


class Map(NamedTuple):
    """What was found."""

    weight: Float64[Tensor, "output feature"]
    """Outputs of variance 1."""
    agreement: Float64[Tensor, " output"]
    """C_ii, descending."""
    loss: float
    loss_start: float
    """At the canonical directions."""
    gradient: float
    """Largest entry of the loss's gradient in whitened coordinates, where weights have length 1."""
    steps: int


def of_pairs(x: Float[Tensor, "row feature"], partner: Int64[Tensor, "row pair"]) -> PairMoments:
    """The moments of rows with their partners.

    Args:
        x: rows.
        partner: which rows each is paired with.

    Cost: 2 row (1 + 1) feature^2 flops: partners of a row are added before they are multiplied.
    """
    n, k = partner.shape
    uses = torch.full((len(x),), k, dtype=torch.float64, device=x.device)
    uses.index_add_(0, partner.flatten(), torch.ones(n * k, dtype=torch.float64, device=x.device))
    mean = (uses[:, None] * x.double()).sum(0) / uses.sum()
    z = x.double() - mean
    others = torch.zeros_like(z)
    for column in range(k):
        others += z[partner[:, column]]
    cross = z.T @ others / (n * k)
    return PairMoments(mean, (z * uses[:, None]).T @ z / uses.sum(), (cross + cross.T) / 2)


def learn(moments: PairMoments, outputs: int, penalty: float, ridge: float, steps: int, seed: int = 0) -> Map:
    """The map of least loss that descent from beside the canonical directions finds (L-BFGS): a minimum, not proven to be the least.

    Args:
        moments: of pairs.
        outputs: at most the features.
        penalty: of correlations between different outputs.
        ridge: added to variances, in their mean: directions of next to no variance must not decide.
        steps: of the descent at most.
        seed: of its start.

    Cost: 20 feature^3 flops, and 4 feature^2 outputs for each step.
    """
    width = len(moments.mean)
    spread = float(moments.variance.diagonal().mean())
    held = moments.variance + ridge * spread * torch.eye(
        width, dtype=torch.float64, device=moments.mean.device
    )
    values, vectors = torch.linalg.eigh(held)
    whiten = (
        vectors / values.clamp(min=values[-1] * 1e-14).sqrt() @ vectors.T
    )  # symmetric: the one that no solver turns
    cross = whiten.T @ moments.cross @ whiten
    cross = (cross + cross.T) / 2
    a = signed(torch.linalg.eigh(cross).eigenvectors.flip(1)[:, :outputs].T.contiguous())
    start, _ = _loss(a, cross, penalty)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        a.device
    )
    a, taken = _descend(a + BESIDE / width**0.5 * noise, cross, penalty, steps)
    loss, gradient = _loss(a, cross, penalty)
    a = torch.nn.functional.normalize(a, dim=1)
    agreement = ((a @ cross) * a).sum(1)
    order = torch.argsort(agreement, descending=True, stable=True)
    return Map(signed(a[order] @ whiten), agreement[order], loss, start, gradient, taken)


def loss_of(weight: Float64[Tensor, "output feature"], moments: PairMoments, penalty: float) -> float:
    """The loss of any map, without a ridge; outputs that do not vary agree in nothing."""
    spread = ((weight @ moments.variance) * weight).sum(1)
    scale = torch.where(spread > 0, spread, torch.inf).rsqrt()
    return float(_terms(scale[:, None] * (weight @ moments.cross @ weight.T) * scale, penalty))


def _terms(c: Tensor, penalty: float) -> Tensor:
    own = (1 - c.diagonal()).square().sum()
    return own + penalty * (c.square().sum() - c.diagonal().square().sum())


def _loss(a: Tensor, cross: Tensor, penalty: float) -> tuple[float, float]:
    """The loss of weights of length 1, and its largest slope."""
    with torch.enable_grad():
        free = torch.nn.functional.normalize(a.detach(), dim=1).requires_grad_()
        loss = _of_whitened(free, cross, penalty)
        (slope,) = torch.autograd.grad(loss, free)
    return float(loss.detach()), float(slope.abs().max())


def _of_whitened(a: Tensor, cross: Tensor, penalty: float) -> Tensor:
    unit = torch.nn.functional.normalize(a, dim=1)
    return _terms(unit @ cross @ unit.T, penalty)


def _descend(a: Tensor, cross: Tensor, penalty: float, steps: int) -> tuple[Tensor, int]:
    free = a.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [free], max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _of_whitened(free, cross, penalty)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return free.detach(), int(optimiser.state[free].get("n_iter", 0))

"""Negentropy of projections of a Gaussian mixture, and the plane where it is largest.

A mixture with weights w, means m and covariances S is fitted once; on the plane of orthonormal columns B its density is the mixture of
Gaussians with means B^T m and covariances B^T S B, so that no plane needs a fit of its own. The negentropy there is the entropy of a
Gaussian with the rows' covariance less that of the mixture, which is the mean of -ln density over the rows.

Scrucca, Serafini, Projection pursuit based on Gaussian mixtures and evolutionary algorithms, JCGS 28 (2019) 847. On the CPU.
"""

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float64
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

STEPS, RATE = 150, 0.1
"""Of a climb."""
LEAST_VARIANCE = 1e-3
"""Added to covariances of mixtures of rows with unit variance, so that equal rows are no peak of endless density."""


class Mixture(NamedTuple):
    """A Gaussian mixture."""

    weight: Float64[Tensor, " part"]
    mean: Float64[Tensor, "part axis"]
    covariance: Float64[Tensor, "part axis axis"]


class Plane(NamedTuple):
    """A projection."""

    basis: Float64[Tensor, "axis component"]
    """Orthonormal columns, those along which the mixture's means vary most first."""
    negentropy: float


def fitted(z: Float64[Tensor, "row axis"], parts: int, seed: int) -> tuple[Mixture, float]:
    """The mixture of largest likelihood with so many parts, and its BIC, which is least for the best number."""
    rows = z.numpy()
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = GaussianMixture(parts, random_state=seed, reg_covar=LEAST_VARIANCE, n_init=2).fit(rows)
        bic = float(model.bic(rows))
    arrays = (model.weights_, model.means_, model.covariances_)
    return Mixture(*(torch.from_numpy(values).double() for values in arrays)), bic


def chosen(z: Float64[Tensor, "row axis"], most: int, seed: int) -> Mixture:
    """The mixture of least BIC with 1 to so many parts, no more than a fifth of the rows."""
    found = [fitted(z, parts, seed) for parts in range(1, max(1, min(most, len(z) // 5)) + 1)]
    return min(found, key=lambda each: each[1])[0]


def negentropy(
    z: Float64[Tensor, "row axis"], mixture: Mixture, basis: Float64[Tensor, "start axis component"]
) -> Float64[Tensor, " start"]:
    """Of the rows' projections, by the mixture's density there; can be below 0 on rows that the mixture was not fitted to.

    Cost: start row part component^2.
    """
    k = basis.shape[2]
    means = torch.einsum("pa,sak->spk", mixture.mean, basis)
    covariance = torch.einsum("pab,sak,sbl->spkl", mixture.covariance, basis, basis)
    root = torch.linalg.cholesky(covariance)
    y = torch.einsum("na,sak->snk", z, basis)
    apart = (y[:, None] - means[:, :, None]).transpose(2, 3)
    scaled = torch.linalg.solve_triangular(root, apart, upper=False)
    logs = -0.5 * scaled.square().sum(2) - root.diagonal(dim1=2, dim2=3).log().sum(2)[:, :, None]
    density = torch.logsumexp(logs + mixture.weight.clamp(min=1e-300).log()[None, :, None], 1).mean(1)
    centred = y - y.mean(1, keepdim=True)
    spread = centred.transpose(1, 2) @ centred / y.shape[1]
    return 0.5 * torch.logdet(spread) + density + 0.5 * k


def pursued(
    z: Float64[Tensor, "row axis"], mixture: Mixture, components: int, starts: int, seed: int
) -> Plane:
    """The plane of largest negentropy over seeded starts, of which the first are the axes and the mixture's means.

    Gradient ascent takes the place of the paper's genetic algorithm.
    """
    d = z.shape[1]
    rng = torch.Generator().manual_seed(seed)
    begun = torch.randn(starts, d, components, dtype=torch.float64, generator=rng)
    begun[0] = torch.eye(d, dtype=torch.float64)[:, :components]
    between = (mixture.mean.T * mixture.weight) @ mixture.mean
    if starts > 1:
        begun[1] = torch.linalg.eigh(between)[1].flip(1)[:, :components]
    free = begun.clone().requires_grad_()
    climb = torch.optim.Adam([free], lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS if len(mixture.weight) > 1 and components < d else 0):
            climb.zero_grad()
            loss = -negentropy(z, mixture, torch.linalg.qr(free).Q).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            climb.step()
    bases = torch.cat([torch.linalg.qr(free.detach()).Q, torch.linalg.qr(begun).Q])
    values = negentropy(z, mixture, bases)
    best = bases[int(values.argmax())]
    turn = torch.linalg.eigh(best.T @ between @ best)[1].flip(1)
    value = float(values.max())
    return Plane(best @ turn, value if math.isfinite(value) else 0.0)

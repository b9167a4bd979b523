"""Block subspace iteration on a covariance that is never formed: one pass over rows multiplies it by a block (`products`).

With C the covariance, the best eigenpairs inside the span of Q follow from C Q alone, and |C v - theta v| says how far an eigenvalue is
from theta at most.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics.spectrum import signed

State = dict[str, Tensor]


class Ritz(NamedTuple):
    """Approximate eigenpairs of the covariance inside the span of a block, with what is known of their errors."""

    values: Float64[Tensor, " component"]
    """Descending; each is at most the eigenvalue of the same rank."""
    vectors: Float64[Tensor, "component feature"]
    residuals: Float64[Tensor, " component"]
    """|C v - theta v|: some eigenvalue lies this close to theta."""
    trace: float
    """Of the whole covariance, exact."""


def start(width: int, size: int, seed: int) -> Float64[Tensor, "feature component"]:
    """A seeded random orthonormal block, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(width, size, generator=generator, dtype=torch.float64))


def orthonormal(block: Float64[Tensor, "feature component"]) -> Float64[Tensor, "feature component"]:
    """An orthonormal basis of a block's span, by Householder reflections; full even where the block is not."""
    basis: Tensor = torch.linalg.qr(block).Q
    return basis


def ritz(
    y: Float64[Tensor, "feature component"], q: Float64[Tensor, "feature component"], trace: float
) -> Ritz:
    """The best eigenpairs inside the span of an orthonormal block (Rayleigh-Ritz).

    Args:
        y: the covariance times q.
        q: orthonormal columns.
        trace: of the covariance.

    Cost: O(feature component^2).
    """
    small = q.T @ y
    values, turn = torch.linalg.eigh((small + small.T) / 2)
    values, turn = values.flip(0), turn.flip(1)
    residuals = torch.linalg.vector_norm(y @ turn - (q @ turn) * values, dim=0)
    return Ritz(values, signed((q @ turn).T.contiguous()), residuals, trace)


def outside(found: Ritz, k: int) -> float:
    """The variance outside the first k vectors; no eigenvalue beyond the k-th is larger, none is missed by more."""
    return max(0.0, found.trace - float(found.values[:k].sum()))


def angle_bound(found: Ritz, k: int) -> float:
    """A bound on the sine of the largest angle to the true top k subspace; infinite where it cannot be had.

    Davis, Kahan 1970: |sin| <= |R| / gap, with R the residual of the first k vectors and the gap between their values
    and the eigenvalues beyond, which are at most `outside(found, k)`.
    """
    return _sine(found, k, outside(found, k))


def angle_estimate(found: Ritz, k: int) -> float:
    """The same with the next value plus its residual for the eigenvalues beyond; infinite without a gap or a next value.

    Too small if the iteration has missed a direction altogether.
    """
    if k >= len(found.values):
        return math.inf
    return _sine(found, k, float(found.values[k] + found.residuals[k]))


def _sine(found: Ritz, k: int, beyond: float) -> float:
    gap = float(found.values[k - 1]) - beyond
    if gap <= 0:
        return math.inf
    return float(torch.linalg.vector_norm(found.residuals[:k])) / gap

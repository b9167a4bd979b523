"""Means and medians of subspaces and of flags by their chordal distances, without any projector.

A flag is a nested series of subspaces, given by orthonormal rows and where each subspace ends. With blocks Y_j of rows between two
ends, the squared chordal distance of flags is sum_j (m_j - |X_j Y_j'|^2), and a weighted mean maximises sum_j tr X_j S_j X_j' with
S_j = sum_i w_i Y_ij' Y_ij over orthonormal X. For one block that is an eigenproblem; for several, a convex function is maximised on
the Stiefel manifold, which polar factors of its gradient do without ever going down (Journee, Nesterov, Richtarik, Sepulchre 2010).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics.spectrum import eigen, signed

Basis = Float64[Tensor, "component feature"]


class Mean(NamedTuple):
    """A mean or median."""

    basis: Basis
    share: Float64[Tensor, " component"]
    """Weighted mean over members of the squared length that each direction keeps in the member's block: 1 for one that all have."""
    residual: float
    """Size of the gradient along the manifold over that of the whole one: 0 at a stationary point."""
    gap: float
    """Between the share of the last direction and of the next; NaN for flags of several blocks, or where there is none."""
    iterations: int


class Median(NamedTuple):
    """A median, and the weights that it ended with."""

    mean: Mean
    weight: Float64[Tensor, " member"]
    """Of sum the number of members: small for one that lies far from the others."""
    iterations: int
    converged: bool
    change: float
    """Of the sum of distances in the last iteration, relative."""


class Family:
    """Members in coordinates of the space that all of them span, so that nothing of size feature x feature is formed."""

    def __init__(self, members: Sequence[Tensor], ends: Sequence[int]) -> None:
        """Of bases [component, feature] with at least `ends[-1]` rows; a single end takes all rows of each, however many."""
        stacked = torch.cat(list(members))
        found = torch.linalg.qr(stacked.T) if len(stacked) <= stacked.shape[1] else None
        self._frame = None if found is None else found.Q.T
        coordinates = stacked if found is None else found.R.T
        parts = torch.split(coordinates, [len(member) for member in members])
        cuts = [0, *ends]
        self.blocks = (
            [[part] for part in parts]
            if len(ends) == 1
            else [[part[a:b] for a, b in pairwise(cuts)] for part in parts]
        )
        self.sizes = [b - a for a, b in pairwise(cuts)]

    def mean(self, weight: Float64[Tensor, " member"], tolerance: float, limit: int) -> Mean:
        """The weighted mean. Cost: member component rank^2, and rank^3 for each iteration."""
        sums = [
            torch.stack(
                [w * block[j].T @ block[j] for w, block in zip(weight, self.blocks, strict=True)]
            ).sum(0)
            for j in range(len(self.sizes))
        ]
        sums = [each / weight.sum() for each in sums]
        x, gap = _leading(sum(sums, torch.zeros_like(sums[0])), sum(self.sizes))
        done = 0
        if len(sums) > 1:
            gap = math.nan
            while done < limit:
                u, _, v = torch.linalg.svd(self._gradient(x, sums), full_matrices=False)
                before, x, done = x, u @ v, done + 1
                if float((x - before).abs().max()) < tolerance:
                    break
        gradient = self._gradient(x, sums)
        inner = gradient @ x.T
        size = float(torch.linalg.vector_norm(gradient))
        along = gradient - (inner + inner.T) / 2 @ x
        residual = float(torch.linalg.vector_norm(along)) / size if size else 0.0
        x = signed(x if self._frame is None else x @ self._frame)
        return Mean(x, (inner.diagonal()).clamp(0, 1), residual, gap, done)

    def distances(self, basis: Basis) -> Float64[Tensor, " member"]:
        """Chordal distances of all members to a flag of these sizes: sqrt(sum_j (min(m_j, k_j) - |X_j Y_j'|^2))."""
        x = basis if self._frame is None else basis @ self._frame.T
        found = [
            sum(_squared_sines(a, b) for a, b in zip(torch.split(x, self.sizes), member, strict=True))
            for member in self.blocks
        ]
        return torch.tensor(found, dtype=torch.float64, device=basis.device).sqrt()

    def median(
        self, weight: Float64[Tensor, " member"], least: float, tolerance: float, limit: int
    ) -> Median:
        """The flag with the least weighted sum of distances, by reweighted means (Weiszfeld).

        Args:
            least: distance below which a member's weight grows no further.
            tolerance: relative change of the sum of distances that ends it.
        """
        now, total, change, done = weight, math.inf, math.inf, 0
        mean = self.mean(now, tolerance, limit)
        while done < limit and change > tolerance:
            apart = self.distances(mean.basis)
            before, total = total, float(weight @ apart)
            change = (
                abs(before - total) / total
                if total > 0 and math.isfinite(before)
                else math.inf
                if total
                else 0.0
            )
            now = weight / apart.clamp(min=least)
            now = now / now.sum() * len(now)
            mean, done = self.mean(now, tolerance, limit), done + 1
        return Median(mean, now, done, change <= tolerance, change)

    def _gradient(self, x: Tensor, sums: Sequence[Tensor]) -> Tensor:
        return torch.cat([part @ each for part, each in zip(torch.split(x, self.sizes), sums, strict=True)])


def _leading(matrix: Tensor, k: int) -> tuple[Tensor, float]:
    """The first k eigenvectors as rows, and the gap to the next."""
    found = eigen(matrix)
    gap = float(found.values[k - 1] - found.values[k]) if k < len(found.values) else math.nan
    return found.vectors[:k], gap


def _squared_sines(x: Tensor, y: Tensor) -> float:
    """The sum of squared sines between two blocks, without cancelling where they agree."""
    a, b = (x, y) if len(x) <= len(y) else (y, x)
    return float((a - (a @ b.T) @ b).square().sum())

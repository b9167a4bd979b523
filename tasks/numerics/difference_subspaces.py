"""Difference and mean of two subspaces, from their principal vectors: nothing of size feature x feature is formed.

With principal vectors x_i, y_i at angles t_i the sum of both projectors has eigenvalues 1 + cos t_i with vectors x_i + y_i, and 1 - cos t_i
with x_i - y_i. The first span the mean (principal component) subspace, for one dimension the midpoint of the geodesic; the others the
difference subspace. A shared direction has t = 0 and no part in the difference.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import wishart
from tasks.numerics.angles import Angles, principal_angles

Basis = Float64[Tensor, "component feature"]
SHARED = 1e-7
"""Angles below it are taken for shared directions: no difference of two unit vectors would have a direction left."""


class Between(NamedTuple):
    """What lies between two subspaces."""

    angles: Angles
    """Ascending."""
    mean: Basis
    """Orthonormal: directions that both have to more than a half; a right angle has none."""
    difference: Basis
    """Orthonormal, in the order of falling angles."""

    @property
    def magnitude(self) -> float:
        """Of the difference."""
        return magnitude(self.angles)


def magnitude(angles: Angles) -> float:
    """2 sum (1 - cos t), the sum of squared lengths of x_i - y_i; in sines, so that small ones keep their digits."""
    return float(4 * (angles / 2).sin().square().sum())


def between(a: Basis, b: Float64[Tensor, "other feature"]) -> Between:
    """Angles, mean and difference of two subspaces.

    Raises:
        MethodError: as `principal_angles`.

    Cost: O(feature k1 k2), one QR of [feature, k].
    """
    theta = principal_angles(a, b)
    u, cosine, v = torch.linalg.svd(a @ b.T, full_matrices=False)
    x, y = u.T @ a, v @ b
    both = cosine > math.sqrt(torch.finfo(torch.float64).eps)
    mean = _normed((x + y)[both])
    apart = (theta > SHARED).flip(0)
    difference = torch.linalg.qr((x - y).flip(0)[apart].T).Q.T
    return Between(theta, mean, difference.contiguous())


def _normed(rows: Tensor) -> Tensor:
    """Rows that are orthogonal but for rounding, orthonormal."""
    columns: Tensor = torch.linalg.qr(rows.T).Q
    return columns.T.contiguous()


def random_magnitude(k1: int, k2: int, width: int, draws: int, seed: int) -> float:
    """The mean magnitude between random subspaces: cosines are singular values of a block of a random orthogonal matrix.

    The Gram of such a block is (W + V)^-1/2 W (W + V)^-1/2 with independent Wishart matrices W and V of k1 x k1, drawn by Bartlett's
    triangles, so that no vector of `width` entries is.
    """
    small, large = min(k1, k2), max(k1, k2)
    rest = width - large
    crowded = (
        small > rest
    )  # they share directions: sines against the complement of the larger are the free ones
    size, inside = (rest, small) if crowded else (small, large)
    random = wishart.generator(seed)
    found = []
    for _ in range(draws if size else 1):
        w, v = (wishart.drawn(size, freedom, random) for freedom in (inside, width - inside))
        root = torch.linalg.cholesky(w + v)
        half = torch.linalg.solve_triangular(root, w, upper=False)
        inner = torch.linalg.solve_triangular(root, half.T, upper=False)
        squares = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(0, 1)
        found.append(float(2 * (1 - (1 - squares if crowded else squares).sqrt()).sum()))
    return sum(found) / len(found)

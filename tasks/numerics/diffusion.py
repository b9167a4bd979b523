"""Diffusion over points: the spectrum of a random walk with Gaussian steps, and its entropy.

With G_ij = exp(-d_ij^2 / 2 s^2), D the diagonal of its row sums and K = D^-1/2 G D^-1/2 there are two walks. K has the eigenvalues of
D^-1 G, the walk on the points as they lie. Dividing K by its own row sums again gives the walk without half of the effect of the points'
density (Coifman, Lafon, Applied and Computational Harmonic Analysis 21 (2006) 5, with alpha of 1/2).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics.distances import Distances

Walk = Literal["package", "documented"]


def spectrum(distance: Distances, bandwidth: float, walk: Walk) -> Float64[Tensor, " row"]:
    """Eigenvalues of a walk, descending: all in 0..1, the first is 1.

    Args:
        distance: of all points.
        bandwidth: s of the steps, above 0.
        walk: `package`: of D^-1 G; `documented`: of K divided by its row sums.

    Cost: O(row^3).
    """
    kernel = _normalised(torch.exp(-(distance / bandwidth).square() / 2))
    if walk == "documented":
        kernel = _normalised(kernel)
    values: Tensor = torch.linalg.eigvalsh(kernel)
    return values.abs().flip(0)


def entropy(values: Float64[Tensor, " row"], time: int) -> float:
    """Of the eigenvalues after so many steps, as shares of their sum, in bits: 0 for one point, log2 of points that do not reach others."""
    powers = values.pow(time)
    return float(torch.special.entr(powers / powers.sum()).sum()) / math.log(2)


def _normalised(kernel: Tensor) -> Tensor:
    root: Tensor = kernel.sum(1).rsqrt()
    return root[:, None] * kernel * root

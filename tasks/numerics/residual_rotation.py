"""Rotations of a layer's inputs after which few of them hold most of the energy, and the others share theirs evenly.

With U the eigenvectors of the inputs' second moment, U_h those of the largest eigenvalues and U_l the others, the rotation is
[U_h R_h, U_l R_l] with random rotations R inside of each part: the split is that of least energy in the low part, and rotations inside of
a part spread outliers over all of its inputs. The second moment of the rotated inputs has no products between the parts. Source: Saxena,
Sharify, Roy, Wang 2024, "ResQ: mixed-precision quantization of large language models with low-rank residuals", section 3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import spectrum


class Rotation(NamedTuple):
    """Of inputs."""

    matrix: Float64[Tensor, "input input"]
    """Orthogonal; inputs x become matrix^T x."""
    energy: float
    """Share of the inputs' energy in the high part; 0 where there is none."""


def rotation(gram: Float64[Tensor, "input input"], high: int, seed: int) -> Rotation:
    """The rotation for a second moment.

    Args:
        gram: second moment of the inputs.
        high: inputs of the high part, 0 to all.
        seed: of the random rotations, which are the same on every device.

    Raises:
        MethodError: if the moment is not finite, or the eigensolver fails.

    Cost: O(input^3).
    """
    found = spectrum.eigen(gram)
    values, rng = found.values.clamp(min=0), torch.Generator().manual_seed(seed)
    parts = found.vectors[:high], found.vectors[high:]
    turned = [part.T @ random_rotation(len(part), rng).to(gram.device) for part in parts]
    whole = float(values.sum())
    return Rotation(torch.cat(turned, 1), float(values[:high].sum()) / whole if whole > 0 else 0.0)


def random_rotation(width: int, rng: torch.Generator) -> Float64[Tensor, "input input"]:
    """Uniform among orthogonal matrices (Haar): QR of normal numbers, with the signs of R's diagonal (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=rng))
    return torch.mul(q, r.diagonal().sign())

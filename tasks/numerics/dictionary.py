"""Observables of a state: functions of its coordinates, of which the first are the coordinates themselves."""

import math
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

Kind = Literal["identity", "quadratic", "fourier"]


def size(width: int, kind: Kind, features: int) -> int:
    """How many observables."""
    more = {"identity": 0, "quadratic": width * (width + 1) // 2, "fourier": features}
    return width + more[kind]


def drawn(width: int, features: int, seed: int) -> dict[str, Tensor]:
    """Random frequencies [feature, coordinate], of unit variance, and phases of `fourier`; on the CPU, the same everywhere."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "frequency": torch.randn(features, width, dtype=torch.float64, generator=rng),
        "phase": 2 * math.pi * torch.rand(features, dtype=torch.float64, generator=rng),
    }


def observables(
    z: Float64[Tensor, "row coordinate"],
    kind: Kind,
    frequency: Float64[Tensor, "cosine coordinate"],
    phase: Float64[Tensor, " cosine"],
) -> Float64[Tensor, "row observable"]:
    """The coordinates, then all products of two, or cosines of random projections.

    Args:
        z: coordinates, the largest of about unit variance.
        kind: which.
        frequency, phase: of `drawn`.
    """
    if kind == "quadratic":
        i, j = torch.triu_indices(z.shape[1], z.shape[1], device=z.device)
        return torch.cat([z, z[:, i] * z[:, j]], 1)
    if kind == "fourier":
        return torch.cat([z, torch.cos(z @ frequency.to(z).T + phase.to(z))], 1)
    return z

"""What replacing the weights of a linear layer does to its outputs, from the second moment of its inputs."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def output_energy(weight: Float64[Tensor, "output input"], second: Float64[Tensor, "input input"]) -> float:
    """tr(W G W^T) = E|W x|^2, not negative."""
    return max(0.0, float(torch.sum((weight @ second) * weight)))


def relative_error(
    weight: Float64[Tensor, "output input"],
    other: Float64[Tensor, "output input"],
    second: Float64[Tensor, "input input"],
) -> float | None:
    """sqrt(E|W x - W' x|^2 / E|W x|^2), exact over the rows that made the moment; None where all outputs are zero.

    Cost: O(output input^2).
    """
    whole = output_energy(weight, second)
    return math.sqrt(output_energy(weight - other, second) / whole) if whole > 0 else None

"""What replacing the weights of a linear layer does to its outputs, from the second moment of its inputs."""

import torch
from jaxtyping import Float64
from torch import Tensor


def output_energy(weight: Float64[Tensor, "output input"], gram: Float64[Tensor, "input input"]) -> float:
    """tr(W G W^T), the mean of |W x|^2; not negative."""
    return max(0.0, float(torch.sum((weight @ gram) * weight)))


def output_errors(
    weight: Float64[Tensor, "output input"],
    other: Float64[Tensor, "output input"],
    gram: Float64[Tensor, "input input"],
) -> Float64[Tensor, " output"]:
    """Mean of (W x - W' x)^2, output by output; not negative.

    Cost: O(output input^2).
    """
    change = weight - other
    return ((change @ gram) * change).sum(1).clamp(min=0)


def lost_share(
    weight: Float64[Tensor, "output input"],
    other: Float64[Tensor, "output input"],
    gram: Float64[Tensor, "input input"],
) -> float:
    """Mean of |W x - W' x|^2 over that of |W x|^2, exact over the rows that made G; 0 where all outputs are zero.

    Cost: O(output input^2).
    """
    whole = output_energy(weight, gram)
    return output_energy(weight - other, gram) / whole if whole > 0 else 0.0

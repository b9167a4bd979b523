"""Maps of rows to codes of length 1: a linear map and, where wanted, rectified units beside it, with the state that Adam needs.

c(x) = h / |h|, h = W x + b + V relu(U x + a). A head is a dict of float64 tensors: `weight` [code, feature], `bias` [code], `in`
[hidden, feature], `in.bias` [hidden], `out` [code, hidden].
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

Head = dict[str, Tensor]
PARTS = ("weight", "bias", "in", "in.bias", "out")
NONE = 1e-12
"""Added to squares of lengths, so that what is mapped to zero has a gradient."""


def drawn(width: int, hidden: int, code: int, rng: torch.Generator) -> Head:
    """A random head: what it gives of rows of deviation 1 has deviations of about 1."""
    return {
        "weight": torch.randn(code, width, generator=rng, dtype=torch.float64) / width**0.5,
        "bias": torch.zeros(code, dtype=torch.float64),
        "in": torch.randn(hidden, width, generator=rng, dtype=torch.float64) / width**0.5,
        "in.bias": torch.zeros(hidden, dtype=torch.float64),
        "out": torch.randn(code, hidden, generator=rng, dtype=torch.float64) / max(1, hidden) ** 0.5,
    }


def codes(head: Mapping[str, Tensor], x: Float64[Tensor, "row feature"]) -> Float64[Tensor, "row code"]:
    """Of length 1. Cost: 2 row (code feature + hidden (feature + code)) flops."""
    h = x @ head["weight"].T + head["bias"]
    if len(head["in"]):
        h = h + torch.relu(x @ head["in"].T + head["in.bias"]) @ head["out"].T
    length: Tensor = (h.square().sum(1, keepdim=True) + NONE).sqrt()
    return h / length


def of_stored_rows(head: Head, mean: Float64[Tensor, " feature"], scale: float) -> Head:
    """The head that gives of rows what this one gives of (rows - mean) / scale."""
    weight, inner = head["weight"] / scale, head["in"] / scale
    moved = {"weight": weight, "bias": head["bias"] - weight @ mean}
    return head | moved | {"in": inner, "in.bias": head["in.bias"] - inner @ mean}

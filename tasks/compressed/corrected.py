"""Biases that make up for what the mean input loses."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tasks.compressed.layer import Affine


def corrected_bias(
    arrays: Mapping[str, Tensor],
    result: Mapping[str, Any],
    layer: Affine,
    multiplied: Callable[[Tensor], Tensor],
) -> Tensor | None:
    """[output] in the layer's dtype, or None where the layer has none and nothing is corrected.

    Args:
        arrays: with the `mean` [input] of the inputs, where the result says that it is `corrected`.
        result: of the artifact.
        layer: as it was.
        multiplied: float64 [input] times the weights that stand for the layer's.
    """
    if not result["corrected"]:
        return None if layer.bias is None else layer.bias.detach().clone()
    mean = arrays["mean"].double()
    lost = layer.weight.detach().double() @ mean - multiplied(mean)
    return (lost if layer.bias is None else layer.bias.detach().double() + lost).to(layer.weight.dtype)

"""A linear layer in training that keeps one number of each sub-token of its input for the backward, instead of the input.

The forward is that of the layer, and so is the gradient of its input. The gradient of its weights is made of the coarse input
sum_g (v_g . x_g) v_g, where x_g are equal runs of features and v_g is a fixed direction of length 1.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SubTokenLinear(nn.Module):
    """y = weight x + bias, with weights and bias of the layer that it stands for."""

    direction: Tensor

    def __init__(self, layer: nn.Linear, direction: Tensor) -> None:
        """Share the layer's parameters.

        Args:
            layer: stays as it is.
            direction: [group, place], rows of length 1, groups times places as many as the layer's inputs.
        """
        super().__init__()
        if direction.numel() != layer.in_features:
            raise ValueError(
                f"directions have {direction.numel()} entries, the layer has {layer.in_features} inputs"
            )
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("direction", direction.to(layer.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        out: Tensor = _Coarse.apply(x, self.weight, self.bias, self.direction)  # type: ignore[no-untyped-call]
        return out


class _Coarse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, direction: Tensor) -> Tensor:
        numbers = (x.reshape(*x.shape[:-1], *direction.shape) * direction).sum(-1)
        ctx.save_for_backward(numbers, weight, direction)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        numbers, weight, direction = ctx.saved_tensors
        (given,) = gradients
        flat, coarse = given.flatten(0, -2), (numbers[..., None] * direction).flatten(-2).flatten(0, -2)
        of_x = given @ weight if ctx.needs_input_grad[0] else None
        of_weight = flat.T @ coarse if ctx.needs_input_grad[1] else None
        return of_x, of_weight, flat.sum(0) if ctx.needs_input_grad[2] else None, None

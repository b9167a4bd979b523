"""A linear layer whose inputs are rotated and rounded: few directions of much energy in more bits than the others."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tasks.compressed.codes import Codes
from tasks.compressed.layer import Affine, CompressedLayer, Number


def rounded_rows(x: Tensor, bits: int) -> Tensor:
    """Each row [..., feature] to the nearest of 2^bits values about a whole zero, between the least and the largest of it and 0.

    The arithmetic is that of whole numbers, the result floating: what an integer product would give, not its speed. 16-bit rows are widened
    for it.
    """
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, 1.0)
    zero = (-low / step).round()
    return ((((x / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step).to(dtype)


class MixedPrecisionLinear(CompressedLayer):
    """y = W_h Q(R_h^T x) + W_l Q(R_l^T x) + bias: rotated inputs rounded row by row, rotated weights in codes.

    The rotation is held here and multiplied with; a network in which the layer before it can take it over needs it neither in memory nor
    in time.
    """

    kind: ClassVar[str] = "mixed_precision"
    reads: ClassVar[tuple[str, ...]] = ("rotation", "code", "step")

    def __init__(self, rotation: Tensor, high: Codes, low: Codes, bias: Tensor | None) -> None:
        """Take them as they are.

        Args:
            rotation: [input, input], its first columns those of `high`.
            high: of weights [output, high input].
            low: of weights [output, low input].
            bias: [output].
        """
        super().__init__()
        self.rotation = nn.Parameter(rotation)
        self.high, self.low = high, low
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `outputs`, `inputs`, `high` (of these), `high_bits`, `low_bits`, `high_step`, `low_step`, `bias`,
        `dtype`."""
        dtype, outputs, inputs, high = (
            getattr(torch, spec["dtype"]),
            spec["outputs"],
            spec["inputs"],
            spec["high"],
        )
        found = [
            Codes.empty(outputs, of, spec[f"{name}_bits"], of, True, spec[f"{name}_step"])
            for name, of in (("high", high), ("low", inputs - high))
        ]
        bias = torch.empty(outputs, dtype=dtype) if spec["bias"] else None
        return cls(torch.empty(inputs, inputs, dtype=dtype), found[0], found[1], bias)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has nothing."""
        split, code, step = int(result["high"]), arrays["code"], arrays["step"]
        high = Codes.of(code[:, :split], step[:, :1], None, int(result["high_bits"]), split)
        low = Codes.of(code[:, split:], step[:, 1:], None, int(result["low_bits"]), code.shape[1] - split)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return cls(arrays["rotation"].to(layer.weight.dtype).contiguous(), high, low, bias)

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        return {
            "outputs": len(self.high.packed),
            "inputs": len(self.rotation),
            "high": self.high.inputs,
            "high_bits": self.high.bits,
            "low_bits": self.low.bits,
            "high_step": self.high.step_dtype,
            "low_step": self.low.step_dtype,
            "bias": self.bias is not None,
            "dtype": str(self.rotation.dtype).removeprefix("torch."),
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`."""
        return self.rotation.numel() + self.high.codes + self.low.codes

    @property
    def numbers(self) -> int:
        """See `CompressedLayer`."""
        return super().numbers + self.high.more_codes + self.low.more_codes

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        turned = x @ self.rotation
        high, low = turned[..., : self.high.inputs], turned[..., self.high.inputs :]
        y = self.high.multiply(rounded_rows(high, self.high.bits))
        y = y + self.low.multiply(rounded_rows(low, self.low.bits))
        return y if self.bias is None else y + self.bias

    def affine(self) -> Affine:
        """See `CompressedLayer`. Without the rounding of inputs, which is not affine."""
        weight = (
            torch.cat([self.high.weight(), self.low.weight()], 1).double() @ self.rotation.detach().double().T
        )
        return Affine(weight, None if self.bias is None else self.bias.detach().double())

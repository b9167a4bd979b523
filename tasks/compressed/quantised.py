"""Linear layers whose weights are codes of a few bits."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tasks.compressed.codes import Codes
from tasks.compressed.corrected import corrected_bias
from tasks.compressed.layer import Affine, CompressedLayer, Number
from tasks.compressed.low_rank import LowRankLinear


class QuantisedLinear(CompressedLayer):
    """y = W x + bias, W in codes, which are made into weights whenever it is called: memory is saved, and no time."""

    kind: ClassVar[str] = "quantised"
    reads: ClassVar[tuple[str, ...]] = ("code", "step", "zero", "mean")

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        """Take them as they are.

        Args:
            bias: [output].
        """
        super().__init__()
        self.codes = codes
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `outputs`, `inputs`, `bits`, `group`, `symmetric`, `step` (its dtype), `bias`, `dtype` (of the bias)."""
        of = {name: spec[name] for name in ("outputs", "inputs", "bits", "group", "symmetric", "step")}
        return cls(Codes.empty(**of), _empty_bias(spec))

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has nothing; the bias makes up for what the mean input loses, where the artifact tells."""
        zero = None if result["symmetric"] else arrays["zero"]
        codes = Codes.of(arrays["code"], arrays["step"], zero, int(result["bits"]), int(result["group"]))
        return cls(codes, corrected_bias(arrays, result, layer, codes.weight().double().matmul))

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        codes = self.codes
        return {
            **_of_bias(self.bias),
            "outputs": len(codes.packed),
            "inputs": codes.inputs,
            "bits": codes.bits,
            "group": codes.group,
            "symmetric": codes.zero is None,
            "step": codes.step_dtype,
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`."""
        return self.codes.codes

    @property
    def numbers(self) -> int:
        """See `CompressedLayer`."""
        return super().numbers + self.codes.more_codes

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        y = self.codes.multiply(x)
        return y if self.bias is None else y + self.bias

    def affine(self) -> Affine:
        """See `CompressedLayer`. Weights as they are before they are cast to the dtype of the inputs."""
        return Affine(
            self.codes.weight().double(), None if self.bias is None else self.bias.detach().double()
        )


class QuantisedLowRank(CompressedLayer):
    """y = left (right x) + bias, both factors in codes to the nearest, with a step for each row."""

    kind: ClassVar[str] = "low_rank_quantised"
    reads: ClassVar[tuple[str, ...]] = LowRankLinear.reads

    def __init__(self, left: Codes, right: Codes, bias: Tensor | None) -> None:
        """Take them as they are.

        Args:
            left: of [output, rank].
            right: of [rank, input].
            bias: [output].
        """
        super().__init__()
        self.left, self.right = left, right
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `outputs`, `rank`, `inputs`, `bits`, `left_step`, `right_step` (dtypes), `bias`, `dtype` (of the bias)."""
        outputs, rank, inputs, bits = (spec[name] for name in ("outputs", "rank", "inputs", "bits"))
        left = Codes.empty(outputs, rank, bits, rank, True, spec["left_step"])
        right = Codes.empty(rank, inputs, bits, inputs, True, spec["right_step"])
        return cls(left, right, _empty_bias(spec))

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. Of what `LowRankLinear` is made of; `choice` has the `rank`, and may have the `bits` (8)."""
        factors = LowRankLinear.of(arrays, result, choice, layer)
        left, right = (
            Codes.near(each.detach(), int(choice.get("bits", 8))) for each in (factors.left, factors.right)
        )
        return cls(left, right, None if factors.bias is None else factors.bias.detach())

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        return {
            **_of_bias(self.bias),
            "outputs": len(self.left.packed),
            "rank": self.left.inputs,
            "inputs": self.right.inputs,
            "bits": self.left.bits,
            "left_step": self.left.step_dtype,
            "right_step": self.right.step_dtype,
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`."""
        return self.left.codes + self.right.codes

    @property
    def numbers(self) -> int:
        """See `CompressedLayer`."""
        return super().numbers + self.left.more_codes + self.right.more_codes

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        y = self.left.multiply(self.right.multiply(x))
        return y if self.bias is None else y + self.bias

    def affine(self) -> Affine:
        """See `CompressedLayer`. Factors as they are before they are cast to the dtype of the inputs."""
        weight = self.left.weight().double() @ self.right.weight().double()
        return Affine(weight, None if self.bias is None else self.bias.detach().double())


def _empty_bias(spec: Mapping[str, Any]) -> Tensor | None:
    return torch.empty(spec["outputs"], dtype=getattr(torch, spec["dtype"])) if spec["bias"] else None


def _of_bias(bias: Tensor | None) -> dict[str, Number]:
    """What `_empty_bias` reads."""
    dtype = torch.float32 if bias is None else bias.dtype
    return {"bias": bias is not None, "dtype": str(dtype).removeprefix("torch.")}

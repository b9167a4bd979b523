"""A linear layer as the product of two narrow ones."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.corrected import corrected_bias
from tasks.compressed.layer import Affine, CompressedLayer, Number


class LowRankLinear(CompressedLayer):
    """y = left (right x) + bias."""

    kind: ClassVar[str] = "low_rank"
    reads: ClassVar[tuple[str, ...]] = ("left", "right", "mean")

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
        """Take factors as they are.

        Args:
            left: [output, rank].
            right: [rank, input].
            bias: [output].
        """
        super().__init__()
        self.left, self.right = (
            nn.Parameter(left.contiguous()),
            nn.Parameter(right.contiguous()),
        )  # as a file has them
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `outputs`, `rank`, `inputs`, `bias`, `dtype`."""
        dtype = getattr(torch, spec["dtype"])
        left, right = torch.empty(spec["outputs"], spec["rank"]), torch.empty(spec["rank"], spec["inputs"])
        bias = torch.empty(spec["outputs"], dtype=dtype) if spec["bias"] else None
        return cls(left.to(dtype), right.to(dtype), bias)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has the `rank`; the bias makes up for what the mean input loses, where the artifact tells."""
        rank, dtype = int(choice["rank"]), layer.weight.dtype
        left, right = arrays["left"][:, :rank].double(), arrays["right"][:rank].double()
        bias = corrected_bias(arrays, result, layer, lambda mean: left @ (right @ mean))
        return cls(left.to(dtype), right.to(dtype), bias)

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        return {
            "outputs": self.left.shape[0],
            "rank": self.left.shape[1],
            "inputs": self.right.shape[1],
            "bias": self.bias is not None,
            "dtype": str(self.left.dtype).removeprefix("torch."),
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`."""
        return self.left.numel() + self.right.numel()

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        return F.linear(F.linear(x, self.right), self.left, self.bias)

    def affine(self) -> Affine:
        """See `CompressedLayer`."""
        weight = self.left.detach().double() @ self.right.detach().double()
        return Affine(weight, None if self.bias is None else self.bias.detach().double())

"""A linear layer as the product of two narrow ones, of which the first is that of other layers with the same input."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.corrected import corrected_bias
from tasks.compressed.layer import Affine, Number
from tasks.compressed.shared import SharedLayer


class SharedLowRankLinear(SharedLayer):
    """y = left (right x) + bias, `right` shared by a group; see `tasks.compressed.shared` for what has to be tied."""

    kind: ClassVar[str] = "shared_low_rank"
    reads: ClassVar[tuple[str, ...]] = ("left", "right", "mean")

    def __init__(
        self, group: str, left: Tensor, right: Tensor | None, bias: Tensor | None, inputs: int
    ) -> None:
        """Take factors as they are.

        Args:
            group: name of those that share.
            left: [output, rank].
            right: [rank, input]; None where another layer of the group holds it.
            bias: [output].
            inputs: of the layer.
        """
        super().__init__(group, None if right is None else {"right": right})
        self.left = nn.Parameter(left.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias)
        self.inputs = inputs

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `group`, `holds`, `outputs`, `rank`, `inputs`, `bias`, `dtype`."""
        dtype = getattr(torch, spec["dtype"])
        left = torch.empty(spec["outputs"], spec["rank"], dtype=dtype)
        right = torch.empty(spec["rank"], spec["inputs"], dtype=dtype) if spec["holds"] else None
        bias = torch.empty(spec["outputs"], dtype=dtype) if spec["bias"] else None
        return cls(spec["group"], left, right, bias, spec["inputs"])

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has the `rank`, the `group`, and as `member` the layer's place among those of the artifact.

        The bias makes up for what the mean input loses, where the artifact tells.
        """
        rank, dtype, member = int(choice["rank"]), layer.weight.dtype, int(choice["member"])
        first, outputs = sum(result["outputs"][:member]), int(result["outputs"][member])
        left = arrays["left"][first : first + outputs, :rank].double()
        right = arrays["right"][:rank].double()
        bias = corrected_bias(arrays, result, layer, lambda mean: left @ (right @ mean))
        return cls(str(choice["group"]), left.to(dtype), right.to(dtype), bias, right.shape[1])

    def sizes(self) -> dict[str, Number]:
        """See `SharedLayer`."""
        return {
            "outputs": self.left.shape[0],
            "rank": self.left.shape[1],
            "inputs": self.inputs,
            "bias": self.bias is not None,
            "dtype": str(self.left.dtype).removeprefix("torch."),
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`. Each layer of a group multiplies with what they share."""
        return self.left.numel() + self.held("right").numel()

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        return F.linear(F.linear(x, self.held("right")), self.left, self.bias)

    def affine(self) -> Affine:
        """See `CompressedLayer`."""
        weight = self.left.detach().double() @ self.held("right").detach().double()
        return Affine(weight, None if self.bias is None else self.bias.detach().double())

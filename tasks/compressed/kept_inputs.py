"""A linear layer without some of its inputs, whose weights are gone."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.layer import Affine, CompressedLayer, Number


class KeptInputsLinear(CompressedLayer):
    """y = W x_kept + bias: the layer with zeros in the columns of all other inputs, which are not stored."""

    kind: ClassVar[str] = "kept_inputs"
    reads: ClassVar[tuple[str, ...]] = ("located",)
    kept: Tensor

    def __init__(self, weight: Tensor, kept: Tensor, inputs: int, bias: Tensor | None) -> None:
        """Take them as they are.

        Args:
            weight: [output, kept input].
            kept: int32 [kept input], which ones, ascending.
            inputs: of the whole layer.
            bias: [output].
        """
        super().__init__()
        self.weight, self.inputs = nn.Parameter(weight.contiguous()), inputs
        self.register_buffer("kept", kept)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `outputs`, `kept` (how many), `inputs`, `bias`, `dtype`."""
        dtype = getattr(torch, spec["dtype"])
        weight = torch.empty(spec["outputs"], spec["kept"], dtype=dtype)
        bias = torch.empty(spec["outputs"], dtype=dtype) if spec["bias"] else None
        return cls(weight, torch.zeros(spec["kept"], dtype=torch.int32), spec["inputs"], bias)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has nothing; the bias stays as it is."""
        kept = torch.nonzero(arrays["located"] == 0).flatten().to(layer.weight.device)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return cls(layer.weight.detach()[:, kept], kept.to(torch.int32), layer.weight.shape[1], bias)

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        return {
            "outputs": self.weight.shape[0],
            "kept": self.weight.shape[1],
            "inputs": self.inputs,
            "bias": self.bias is not None,
            "dtype": str(self.weight.dtype).removeprefix("torch."),
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`."""
        return self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        return F.linear(x.index_select(-1, self.kept), self.weight, self.bias)

    def affine(self) -> Affine:
        """See `CompressedLayer`."""
        weight = self.weight.new_zeros(self.weight.shape[0], self.inputs, dtype=torch.float64)
        weight[:, self.kept.long()] = self.weight.detach().double()
        return Affine(weight, None if self.bias is None else self.bias.detach().double())

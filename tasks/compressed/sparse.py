"""A linear layer as a dictionary of directions of its inputs, of which every output takes a few."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.bits import pack, row_bytes, unpack
from tasks.compressed.corrected import corrected_bias
from tasks.compressed.layer import Affine, CompressedLayer, Number


class SparseDictionaryLinear(CompressedLayer):
    """y = S^T (D^T x) + bias, with the same number of entries in every column of S.

    A bit for every output and atom tells where the entries are, which takes less than their indices do. About every second atom has an
    entry, so that the product with S is taken with its zeros: dense products are many times faster than gathering. That saves memory, and
    no time.
    """

    kind: ClassVar[str] = "sparse_dictionary"
    reads: ClassVar[tuple[str, ...]] = ("dictionary", "value", "index", "mean")

    where: Tensor
    """uint8 [output, byte]: see `bits`."""

    def __init__(self, dictionary: Tensor, value: Tensor, where: Tensor, bias: Tensor | None) -> None:
        """Take them as they are.

        Args:
            dictionary: [atom, input].
            value: [output, entry], in the order of their atoms.
            where: uint8 [output, byte], a bit for every atom.
            bias: [output].
        """
        super().__init__()
        self.dictionary, self.value = nn.Parameter(dictionary), nn.Parameter(value)
        self.register_buffer("where", where)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `outputs`, `inputs`, `atoms`, `entries`, `bias`, `dtype`."""
        dtype, outputs = getattr(torch, spec["dtype"]), spec["outputs"]
        dictionary = torch.empty(spec["atoms"], spec["inputs"], dtype=dtype)
        value = torch.empty(outputs, spec["entries"], dtype=dtype)
        where = torch.empty(outputs, row_bytes(spec["atoms"], 1), dtype=torch.uint8)
        return cls(dictionary, value, where, torch.empty(outputs, dtype=dtype) if spec["bias"] else None)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has nothing; the bias makes up for what the mean input loses, where the artifact tells."""
        dtype, index = layer.weight.dtype, arrays["index"].long()
        where = torch.zeros(len(index), arrays["dictionary"].shape[1], dtype=torch.uint8, device=index.device)
        where = pack(where.scatter_(1, index, 1), 1)
        dictionary, value = arrays["dictionary"].T.to(dtype).contiguous(), arrays["value"].to(dtype)
        made = cls(dictionary, value.contiguous(), where, None)
        bias = corrected_bias(arrays, result, layer, made.affine().weight.matmul)
        return made if bias is None else cls(dictionary, made.value.detach(), where, bias)

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        return {
            "outputs": self.value.shape[0],
            "inputs": self.dictionary.shape[1],
            "atoms": self.dictionary.shape[0],
            "entries": self.value.shape[1],
            "bias": self.bias is not None,
            "dtype": str(self.dictionary.dtype).removeprefix("torch."),
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`. With its zeros."""
        return self.dictionary.numel() + len(self.value) * len(self.dictionary)

    @property
    def numbers(self) -> int:
        """See `CompressedLayer`. Without the bits that tell where entries are."""
        return super().numbers - self.where.numel()

    def entries(self) -> Tensor:
        """[output, atom]: S^T with its zeros."""
        there = unpack(self.where, len(self.dictionary), 1)
        place = (there.cumsum(1) - 1).clamp_(min=0)
        return self.value.gather(1, place) * there

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        return F.linear(F.linear(x, self.dictionary), self.entries(), self.bias)

    def affine(self) -> Affine:
        """See `CompressedLayer`."""
        weight = self.entries().detach().double() @ self.dictionary.detach().double()
        return Affine(weight, None if self.bias is None else self.bias.detach().double())

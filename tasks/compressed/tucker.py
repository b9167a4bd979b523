"""A linear layer of attention as a part of one Tucker decomposition of query, key, value and output of all heads."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.corrected import corrected_bias
from tasks.compressed.layer import Affine, Number
from tasks.compressed.shared import SharedLayer

MODES = ("feature", "inner", "layer", "head")
"""Features of the network, of a head, the four layers, and the heads."""
OUTPUT = 3
"""Place of the output layer, which maps from heads to features."""


class TuckerLinear(SharedLayer):
    """W[(head, inner), feature] = core x bases at one place of the mode `layer`; transposed for the output layer.

    Core and bases are shared by a group; see `tasks.compressed.shared` for what has to be tied.
    """

    kind: ClassVar[str] = "tucker"
    reads: ClassVar[tuple[str, ...]] = ("core", *(f"{mode}_basis" for mode in MODES), "mean")

    def __init__(
        self,
        group: str,
        member: int,
        tensors: Mapping[str, Tensor] | None,
        bias: Tensor | None,
        shape: Mapping[str, int],
        dtype: torch.dtype,
    ) -> None:
        """Take tensors as they are.

        Args:
            group: name of those that share.
            member: 0 to 3: query, key, value, output.
            tensors: `core` [a rank for each of `MODES`] and by the name of each mode its basis [length, rank]; None where another layer of
                the group holds them.
            bias: [output].
            shape: by the name of each mode its length, and with `_rank` its rank.
            dtype: of all tensors.
        """
        super().__init__(group, tensors)
        self.member = member
        self.bias = None if bias is None else nn.Parameter(bias)
        self.shape, self.dtype = dict(shape), dtype

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `group`, `holds`, `member`, `bias`, `dtype`; of each of `MODES` its length, and with `_rank` its rank."""
        dtype = getattr(torch, spec["dtype"])
        shape = {name: spec[name] for mode in MODES for name in (mode, f"{mode}_rank")}
        tensors = {mode: torch.empty(shape[mode], shape[f"{mode}_rank"], dtype=dtype) for mode in MODES}
        tensors["core"] = torch.empty([shape[f"{mode}_rank"] for mode in MODES], dtype=dtype)
        outputs = shape["feature"] if spec["member"] == OUTPUT else shape["inner"] * shape["head"]
        bias = torch.empty(outputs, dtype=dtype) if spec["bias"] else None
        return cls(spec["group"], spec["member"], tensors if spec["holds"] else None, bias, shape, dtype)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `choice` has the `group`, and as `member` the layer's place among query, key, value, output.

        The bias makes up for what the mean input of query, key and value loses, where the artifact tells.
        """
        dtype, member = layer.weight.dtype, int(choice["member"])
        tensors = {"core": arrays["core"]} | {mode: arrays[f"{mode}_basis"] for mode in MODES}
        shape = {mode: tensors[mode].shape[0] for mode in MODES}
        shape |= {f"{mode}_rank": tensors[mode].shape[1] for mode in MODES}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        found = cls(str(choice["group"]), member, tensors, None, shape, dtype)
        told = {"corrected": result["corrected"] and member != OUTPUT}
        bias = corrected_bias(arrays, told, layer, found.affine().weight.matmul)
        found.bias = None if bias is None else nn.Parameter(bias)
        return found

    def sizes(self) -> dict[str, Number]:
        """See `SharedLayer`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"member": self.member, "bias": self.bias is not None, "dtype": dtype, **self.shape}

    def heads(self) -> Tensor:
        """[head inner, rank of features]: the part of this layer on the side of the heads."""
        place = self.held("layer")[self.member]
        core = torch.einsum("abcd,c->abd", self.held("core"), place)
        return torch.einsum("abd,ib,hd->hia", core, self.held("inner"), self.held("head")).flatten(0, 1)

    @property
    def products(self) -> int:
        """See `CompressedLayer`."""
        shape = self.shape
        return shape["feature_rank"] * (shape["feature"] + shape["inner"] * shape["head"])

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        if self.member == OUTPUT:
            return F.linear(F.linear(x, self.heads().T), self.held("feature"), self.bias)
        return F.linear(F.linear(x, self.held("feature").T), self.heads(), self.bias)

    def affine(self) -> Affine:
        """See `CompressedLayer`."""
        tensors = {name: self.held(name).detach().double() for name in ("core", *MODES)}
        core = torch.einsum("abcd,c->abd", tensors["core"], tensors["layer"][self.member])
        weight = torch.einsum(
            "abd,fa,ib,hd->hif", core, tensors["feature"], tensors["inner"], tensors["head"]
        ).flatten(0, 1)
        bias = None if self.bias is None else self.bias.detach().double()
        return Affine(weight.T if self.member == OUTPUT else weight, bias)

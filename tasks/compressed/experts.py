"""A mixture of fewer experts, with the router of the larger one: experts of a group are as likely as all of them were."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.layer import Affine, CompressedLayer, Number

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class MergedExperts(CompressedLayer):
    """y = sum over the `top` likeliest groups of p_group expert_group(x).

    p is the softmax over groups of the logsumexp of their experts' logits. An expert is second(act(first x)), or where `gated`
    second(act(first_a x) * first_b x) with first_a the upper and first_b the lower half of the rows of `first`.
    """

    kind: ClassVar[str] = "experts"
    reads: ClassVar[tuple[str, ...]] = ("first", "second", "first_bias", "second_bias", "cluster")

    def __init__(self, tensors: Mapping[str, Tensor], spec: Mapping[str, Number]) -> None:
        """Take tensors as they are.

        Args:
            tensors: `first` [group, inner, input], `second` [group, output, hidden], `router` [expert, input], and where there are any
                `first_bias`, `second_bias` and `router_bias`; `cluster` int64 [expert]: the group of each expert of the router.
            spec: `activation`, `gated`, `top`, and `normalise`: whether the probabilities of those chosen are made to sum to one.
        """
        super().__init__()
        for name, tensor in tensors.items():
            if name == "cluster":
                self.register_buffer(name, tensor.clone())
            else:
                self.register_parameter(name, nn.Parameter(tensor.contiguous()))
        self.options = {name: spec[name] for name in ("activation", "gated", "top", "normalise")}

    @classmethod
    def empty(cls, **spec: Any) -> Self:
        """See `CompressedLayer`. `groups`, `experts`, `inputs`, `inner`, `hidden`, `outputs`, `biases`, `router_bias`, `dtype`,
        `activation`, `gated`, `top`, `normalise`."""
        groups, dtype = spec["groups"], getattr(torch, spec["dtype"])
        tensors = {
            "first": torch.empty(groups, spec["inner"], spec["inputs"], dtype=dtype),
            "second": torch.empty(groups, spec["outputs"], spec["hidden"], dtype=dtype),
            "router": torch.empty(spec["experts"], spec["inputs"], dtype=dtype),
            "cluster": torch.zeros(spec["experts"], dtype=torch.int64),
        }
        if spec["biases"]:
            tensors["first_bias"] = torch.empty(groups, spec["inner"], dtype=dtype)
            tensors["second_bias"] = torch.empty(groups, spec["outputs"], dtype=dtype)
        if spec["router_bias"]:
            tensors["router_bias"] = torch.empty(spec["experts"], dtype=dtype)
        return cls(tensors, spec)

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], result: Mapping[str, Any], choice: Mapping[str, Any], layer: Affine
    ) -> Self:
        """See `CompressedLayer`. `layer` is the router of the larger mixture; nothing is left to be chosen."""
        dtype = layer.weight.dtype
        names = ("first", "second", *(("first_bias", "second_bias") if result["biases"] else ()))
        tensors = {name: arrays[name].to(dtype) for name in names}
        tensors |= {"router": layer.weight, "cluster": arrays["cluster"]}
        if layer.bias is not None:
            tensors["router_bias"] = layer.bias
        return cls(tensors, result)

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        first, second = self.get_parameter("first"), self.get_parameter("second")
        return {
            "groups": first.shape[0],
            "experts": self.get_parameter("router").shape[0],
            "inputs": first.shape[2],
            "inner": first.shape[1],
            "hidden": second.shape[2],
            "outputs": second.shape[1],
            "biases": hasattr(self, "first_bias"),
            "router_bias": hasattr(self, "router_bias"),
            "dtype": str(first.dtype).removeprefix("torch."),
            **self.options,
        }

    @property
    def products(self) -> int:
        """See `CompressedLayer`. Of the experts that a row chooses, and of the router."""
        first, second = self.get_parameter("first"), self.get_parameter("second")
        each = first[0].numel() + second[0].numel()
        return int(self.options["top"]) * each + self.get_parameter("router").numel()

    def chances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and numbers of the likeliest groups, [row, top] each, for [row, input]."""
        logits = F.linear(x, self.get_parameter("router"), getattr(self, "router_bias", None))
        cluster = self.get_buffer("cluster")
        of_groups = [
            logits[:, cluster == group].logsumexp(1) for group in range(len(self.get_parameter("first")))
        ]
        chance, group = torch.stack(of_groups, 1).softmax(1).topk(int(self.options["top"]), dim=1)
        return (chance / chance.sum(1, keepdim=True) if self.options["normalise"] else chance), group

    def expert(self, group: int, x: Tensor) -> Tensor:
        """[row, input] to [row, output], by one expert."""
        biases = hasattr(self, "first_bias")
        first = (
            self.get_parameter("first")[group],
            self.get_parameter("first_bias")[group] if biases else None,
        )
        second = (
            self.get_parameter("second")[group],
            self.get_parameter("second_bias")[group] if biases else None,
        )
        act, inside = ACTIVATIONS[str(self.options["activation"])], F.linear(x, *first)
        if self.options["gated"]:
            gate, up = inside.chunk(2, dim=1)
            return F.linear(act(gate) * up, *second)
        return F.linear(act(inside), *second)

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        rows = x.reshape(-1, x.shape[-1])
        chance, chosen = self.chances(rows)
        outputs = self.get_parameter("second").shape[1]
        y = rows.new_zeros(len(rows), outputs)
        for group in range(len(self.get_parameter("first"))):
            row, place = (chosen == group).nonzero(as_tuple=True)
            y = y.index_add(0, row, chance[row, place, None] * self.expert(group, rows[row]))
        return y.reshape(*x.shape[:-1], outputs)

    def affine(self) -> Affine:
        """A mixture is no affine map.

        Raises:
            TypeError: always.
        """
        raise TypeError("a mixture of experts is no affine map")

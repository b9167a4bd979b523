"""A network with compressed layers in the place of some of its own."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from tasks.compressed.experts import MergedExperts
from tasks.compressed.kept_inputs import KeptInputsLinear
from tasks.compressed.layer import Affine, CompressedLayer
from tasks.compressed.low_rank import LowRankLinear
from tasks.compressed.mixed_precision import MixedPrecisionLinear
from tasks.compressed.quantised import QuantisedLinear, QuantisedLowRank
from tasks.compressed.shared import tie
from tasks.compressed.shared_low_rank import SharedLowRankLinear
from tasks.compressed.sparse import SparseDictionaryLinear
from tasks.compressed.tucker import TuckerLinear

KINDS: dict[str, type[CompressedLayer]] = {
    layer.kind: layer
    for layer in (
        LowRankLinear,
        SharedLowRankLinear,
        TuckerLinear,
        MergedExperts,
        QuantisedLinear,
        QuantisedLowRank,
        SparseDictionaryLinear,
        MixedPrecisionLinear,
        KeptInputsLinear,
    )
}
"""Name in files -> module."""


TURNED = ("Conv1D",)
"""Modules of linear maps that store them as [input, output], by the name of their class (transformers: GPT-2 and its kin)."""


def affine_of(module: nn.Module) -> Affine:
    """The map of a linear layer.

    Raises:
        ValueError: for a module of another kind.
    """
    if isinstance(module, nn.Linear):
        return Affine(module.weight.detach(), None if module.bias is None else module.bias.detach())
    if type(module).__name__ in TURNED:
        weight, bias = (getattr(module, name).detach() for name in ("weight", "bias"))
        return Affine(weight.T.contiguous(), bias)
    raise ValueError(f"a {type(module).__name__} is no linear layer")


def put(network: nn.Module, path: str, layer: CompressedLayer) -> None:
    """Replace the module at a path."""
    network.set_submodule(path, layer)


def tied(network: nn.Module, path: str) -> list[str]:
    """Other names of a layer's weight: where else the network uses it."""
    weight = network.get_submodule(path).get_parameter("weight")
    named = network.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if parameter is weight and name != f"{path}.weight"]


def rebuilt(network: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """A network with empty layers in the place of some, ready for their tensors.

    Args:
        network: with its own layers; is changed.
        layers: path -> `kind` and `spec` of what stands there.
    """
    for path, layer in layers.items():
        put(network, path, KINDS[layer["kind"]].empty(**layer["spec"]))
    tie(network)
    return network

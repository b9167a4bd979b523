"""Candidates that were carried to the network, made of a copy of it, and how large that is."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from schemas.base import canonical_json
from schemas.errors import MethodError
from tasks.compressed import sliced
from tasks.compressed.layer import Affine, CompressedLayer
from tasks.compressed.network import KINDS, affine_of, put, tied
from tasks.compressed.shared import tie
from tasks.methods.compressed_candidates import Candidate, Part
from tasks.methods.compressed_groups import Group, Place
from tasks.methods.contract import NetworkBlock, State

PLAN = "plan"
HELD = 1 << 30
"""Bytes of candidates that are in memory together, or one candidate."""
SIZES = ("layers_bytes", "network_bytes", "layers_numbers", "layers_products")
"""Bytes, numbers (those in few bits too), and multiplications for a row; of the layers that may be replaced, or of the network. A mixture
of experts has none: a row chooses as many of the merged ones."""


def carried(groups: Sequence[Group], candidates: Sequence[Candidate]) -> State:
    """All that is needed to make the candidates, as tensors."""
    plan = {
        "groups": [
            {"places": g.places, "kind": g.kind, "results": [dict(m.result) for m in g.members]}
            for g in groups
        ],
        "candidates": [candidate._asdict() for candidate in candidates],
    }
    state = {PLAN: torch.frombuffer(bytearray(canonical_json(plan)), dtype=torch.uint8)}
    for number, group in enumerate(groups):
        for layer, member in enumerate(group.members):
            for name in _reads(group.kind):
                if name in member.arrays:
                    state[f"{number}/{layer}/{name}"] = member.arrays[name]
    return state


def _reads(kind: str) -> tuple[str, ...]:
    """Arrays of an artifact that are needed."""
    return ("directions",) if kind == sliced.KIND else KINDS[kind].reads


class Made(NamedTuple):
    """A candidate in memory."""

    network: nn.Module
    sizes: Float64[Tensor, " size"]


class Candidates:
    """Candidates that were carried, to be made of a network."""

    def __init__(self, carry: State) -> None:
        plan = json.loads(bytes(carry[PLAN].cpu().numpy()))
        self.groups: list[dict[str, Any]] = plan["groups"]
        self.all = [
            Candidate(**{**one, "parts": tuple(Part(*part) for part in one["parts"])})
            for one in plan["candidates"]
        ]
        self._carry = carry

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all layers that may be replaced, in the order of the artifacts; none of sliced networks."""
        paths = (
            place.module
            for group in self.groups
            if group["kind"] != sliced.KIND
            for places in self._places(group)
            for place in places
        )
        return tuple(dict.fromkeys(paths))

    def of_network(self, network: NetworkBlock) -> Iterator[list[Made]]:
        """All candidates in their order, so many together as fit.

        Raises:
            MethodError: if a layer cannot be replaced.
        """
        as_it_is, held = network.copy(), 0
        before, some = self.sizes_before(as_it_is), list[Made]()
        for candidate in self.all:
            copied = network.copy()
            layers = self.made(copied, candidate)
            made = Made(copied, before + self._change(as_it_is, copied, candidate, layers))
            size = _bytes(copied.parameters()) if self.is_sliced(candidate) else _stored(layers)
            if some and held + size > HELD:
                yield some
                some, held = [], 0
            some.append(made)
            held += size
        yield some

    def sizes_before(self, network: nn.Module) -> Float64[Tensor, " size"]:
        """`SIZES` of the network as it is. Where a candidate slices it, its layers are all of it."""
        if any(self.is_sliced(candidate) for candidate in self.all):
            return torch.tensor(_of_all(network), dtype=torch.float64)
        layers = [list(network.get_submodule(path).parameters()) for path in self.modules]
        tensors = [tensor for some in layers for tensor in some]
        products = sum(_products(network.get_submodule(path)) for path in self.modules)
        sizes = [_bytes(tensors), _bytes(network.parameters()), sum(t.numel() for t in tensors), products]
        return torch.tensor(sizes, dtype=torch.float64)

    def _change(
        self,
        network: nn.Module,
        copied: nn.Module,
        candidate: Candidate,
        layers: dict[str, CompressedLayer],
    ) -> Float64[Tensor, " size"]:
        """Of `SIZES`, against the network as it is."""
        if self.is_sliced(candidate):
            after, before = (torch.tensor(_of_all(one), dtype=torch.float64) for one in (copied, network))
            return after - before
        change = torch.zeros(len(SIZES), dtype=torch.float64)
        for path, layer in layers.items():
            module = network.get_submodule(path)
            stored = layer.stored_bytes - _bytes(module.parameters())
            numbers = layer.numbers - sum(t.numel() for t in module.parameters())
            products = layer.products - _products(module) if _products(module) else 0
            change += torch.tensor([stored, stored, numbers, products], dtype=torch.float64)
        return change

    def made(self, network: torch.nn.Module, candidate: Candidate) -> dict[str, CompressedLayer]:
        """Put the candidate's layers into a network; by their paths: none where the network itself is sliced.

        Raises:
            MethodError: if a module is no linear layer, or its weight is used elsewhere too; if the network cannot be sliced.
        """
        if self.is_sliced(candidate):
            self._slice(network, candidate)
            return {}
        layers: dict[str, CompressedLayer] = {}
        for part in (part for part in candidate.parts if part.rank):
            group, arrays = self.groups[part.group], self._arrays(part.group, part.artifact)
            result, kind = group["results"][part.artifact], KINDS[self.kind(part)]
            for place in self._places(group)[part.artifact]:
                together = f"group {part.group}.{part.artifact}"
                choice = {"rank": part.rank, "bits": part.bits, "member": place.member, "group": together}
                layers[place.module] = kind.of(arrays, result, choice, layer_of(network, place.linear))
        for path, made in layers.items():
            put(network, path, made)
        tie(network)
        return layers

    def kind(self, part: Part) -> str:
        """Of its layers."""
        kind: str = self.groups[part.group]["kind"]
        return kind if part.bits is None else f"{kind}_quantised"

    def layers(self, candidate: Candidate) -> Iterator[tuple[str, str | None, int | None]]:
        """What stands where: module, kind and rank, None where it stays or there is no rank to choose."""
        for part in candidate.parts:
            group = self.groups[part.group]
            ranked = part.rank if {"left", "directions"} & set(_reads(group["kind"])) else 0
            places = self._places(group)
            for place in places[part.artifact]:
                yield place.module, self.kind(part) if part.rank else None, ranked or None

    def is_sliced(self, candidate: Candidate) -> bool:
        """Whether the whole network is another one, of a narrower stream."""
        return bool(self.groups[candidate.group]["kind"] == sliced.KIND)

    def architecture(self, candidate: Candidate) -> dict[str, Any]:
        """What a file tells of such a network; nothing of others."""
        if not self.is_sliced(candidate):
            return {}
        return {"architecture": {"kind": sliced.KIND, "widths": list(candidate.ranks)}}

    @staticmethod
    def _places(group: dict[str, Any]) -> list[list[Place]]:
        return [[Place(*place) for place in places] for places in group["places"]]

    def _slice(self, network: torch.nn.Module, candidate: Candidate) -> None:
        group = self.groups[candidate.group]
        modules = tuple(place.module for places in self._places(group) for place in places)
        directions = self._arrays(candidate.group, 0)["directions"]
        try:
            paths = sliced.norm_paths(network)
            if paths != modules:
                raise MethodError(
                    f"slicing is of the norms {', '.join(modules)}, expected {', '.join(paths)}, in this order; connect "
                    "`compression.residual_moments` at the inputs of all of them"
                )
            if sliced.centred(network) != group["results"][0]["centred"]:
                raise MethodError(
                    f"norms of the network {'take' if sliced.centred(network) else 'do not take'} out the mean over features; set "
                    "`centred` of `compression.residual_moments` so"
                )
            bases = [rows[:kept].T for rows, kept in zip(directions, candidate.ranks, strict=True)]
            sliced.slice_network(network, bases)
        except ValueError as error:
            raise MethodError(str(error)) from error

    def _arrays(self, group: int, layer: int) -> dict[str, Tensor]:
        start = f"{group}/{layer}/"
        return {
            name.removeprefix(start): values for name, values in self._carry.items() if name.startswith(start)
        }


def layer_of(network: torch.nn.Module, path: str) -> Affine:
    """The map of a linear layer of a network.

    Raises:
        MethodError: if there is none at that path, or its weight is used elsewhere too.
    """
    try:
        found = affine_of(network.get_submodule(path))
    except (AttributeError, ValueError) as error:
        raise MethodError(
            f"{path} cannot be replaced: {error}; connect artifacts of linear layers alone"
        ) from error
    others = tied(network, path)
    if others:
        raise MethodError(
            f"{path} shares its weight with {others[0]}: replacing it would untie them; leave it out"
        )
    return found


def _of_all(network: nn.Module) -> list[int]:
    """`SIZES` of all of a network."""
    stored, numbers = _bytes(network.parameters()), sum(t.numel() for t in network.parameters())
    return [stored, stored, numbers, sum(_products(module) for module in network.modules())]


def _products(module: nn.Module) -> int:
    """Multiplications for a row; none of other modules than linear layers."""
    try:
        return affine_of(module).weight.numel()
    except ValueError:
        return 0


def _stored(layers: dict[str, CompressedLayer]) -> int:
    return sum(layer.stored_bytes for layer in layers.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)

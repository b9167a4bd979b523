"""Ways to compress a whole network, from the artifacts of its layers: which layer stands in which module's place, at which rank; or how
wide its residual stream is at each norm."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.base import Frozen, canonical_json
from schemas.errors import MethodError
from schemas.stage import parameter_name, site_of
from tasks.compressed import sliced
from tasks.compressed.layer import Affine, CompressedLayer
from tasks.compressed.network import KINDS, affine_of, put, tied
from tasks.compressed.shared import tie
from tasks.methods.contract import Inputs, Member, State
from tasks.numerics import budget, joint_factors, layer_factors
from tasks.numerics.budget import Ways

PLAN = "plan"


class Layer(Frozen):
    """A layer of the chosen candidate."""

    module: str
    kind: str | None
    """What stands in its place; None where it stays."""
    rank: int | None


class Place(NamedTuple):
    """A layer that an artifact tells of."""

    module: str
    """Its path."""
    member: int
    """Its place among the layers of the artifact."""
    outputs: int
    inputs: int


class Group(NamedTuple):
    """The artifacts of one method with one set of options."""

    name: str
    members: tuple[Member, ...]

    @property
    def kind(self) -> str:
        """Of the layers that they make."""
        return str(self.members[0].result["kind"])

    @property
    def places(self) -> tuple[tuple[Place, ...], ...]:
        """The layers of each artifact; each norm by itself, where the whole network is sliced."""
        if self.kind == sliced.KIND:
            sites = [site for member in self.members for site in member.result["sites"]]
            return tuple((Place(site_of(site).module, 0, 0, 0),) for site in sites)
        return tuple(_places(member) for member in self.members)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all layers; of the norms, where the whole network is sliced."""
        return tuple(place.module for places in self.places for place in places)


class Candidate(NamedTuple):
    """A network to be tried."""

    name: str
    way: str
    """Its name without the share."""
    group: int
    rule: str
    """How ranks were dealt out: `uniform`, `greedy`, or `as made` for layers without ranks."""
    kept: float | None
    """The share that was asked for; of the width, where the network is sliced."""
    ranks: tuple[int, ...]
    """Of each artifact; 0: its layers stay as they are. Widths at norms, where the network is sliced."""
    bits: int | None = None
    """Of factors that are stored in few bits."""


def _places(member: Member) -> tuple[Place, ...]:
    """The layer of the site, or those whose weights the artifact names."""
    result, site = member.result, site_of(member.site)
    if "weights" not in result:
        return (Place(site.module, 0, int(result["outputs"]), int(result["width"])),)
    names = [parameter_name(name, site).removesuffix(".weight") for name in result["weights"]]
    width = int(result["width"])
    outputs = result.get("outputs", [width] * len(names))  # attention's layers are as wide as the network
    return tuple(Place(path, k, int(outputs[k]), width) for k, path in enumerate(names))


def groups_of(members: Sequence[Member]) -> tuple[Group, ...]:
    """Members that belong together, in the order of the run.

    Raises:
        MethodError: if a layer comes twice in a group.
    """
    found: dict[tuple[str, bytes], list[Member]] = {}
    for member in members:
        found.setdefault((member.method, canonical_json(dict(member.config))), []).append(member)
    groups = [
        Group(name, tuple(some))
        for name, some in zip(_names(list(found.values())), found.values(), strict=True)
    ]
    for group in groups:
        twice = sorted({path for path in group.modules if group.modules.count(path) > 1})
        if twice:
            raise MethodError(
                f"{group.name}: the layer {twice[0]} comes twice; connect one artifact of each layer"
            )
    return tuple(groups)


def _names(groups: Sequence[Sequence[Member]]) -> list[str]:
    """Of each group: its method, with the options in which it differs from others of that method."""
    names = []
    for group in groups:
        method, config = group[0].method, group[0].config
        others = [o[0].config for o in groups if o is not group and o[0].method == method]
        apart = sorted(k for k in config if any(other.get(k) != config[k] for other in others))
        options = ", ".join(f"{key}: {config[key]}" for key in apart)
        names.append(method.rpartition(".")[2] + (f" ({options})" if options else ""))
    return names


def candidates_of(
    groups: Sequence[Group], shares: Sequence[float], quantised: tuple[float, int] | None = None
) -> tuple[Candidate, ...]:
    """Every group at every share, with the same share for all layers and with ranks dealt out by losses.

    Args:
        groups: that are tried.
        shares: of numbers.
        quantised: of which share factors of single layers are tried in how many bits too.

    Raises:
        MethodError: for a share so small that even rank 1 of every layer takes more.
    """
    found = []
    for number, group in enumerate(groups):
        if group.kind == sliced.KIND:
            found += _widths(group, number)
            continue
        if _losses(group.members[0]) is None:
            found.append(
                Candidate(group.name, group.name, number, "as made", None, (1,) * len(group.members))
            )
            continue
        for kept in shares:
            in_bits = quantised is not None and kept == quantised[0] and group.kind == "low_rank"
            for rule, ranks in (("uniform", _uniform(group, kept)), ("greedy", _greedy(group, kept))):
                for bits in (None, quantised[1]) if quantised is not None and in_bits else (None,):
                    way = f"{group.name}{f' in {bits} bits' if bits else ''}, {rule}"
                    found.append(Candidate(f"{way}, {kept:g}", way, number, rule, kept, ranks, bits))
    return tuple(found)


def _widths(group: Group, number: int) -> list[Candidate]:
    """Those that the artifact has."""
    found, n = [], len(group.modules)
    for at in group.members[0].result["at"]:
        for rule, widths in (("uniform", (at["width"],) * n), ("greedy", tuple(at["widths"]))):
            way = f"{group.name}, {rule}"
            found.append(Candidate(f"{way}, {at['kept']:g}", way, number, rule, at["kept"], widths))
    return found


def _shape(member: Member) -> tuple[int, int]:
    """Outputs of all layers of an artifact, and their inputs."""
    places = _places(member)
    return sum(place.outputs for place in places), places[0].inputs


def _uniform(group: Group, kept: float) -> tuple[int, ...]:
    """Of a layer that factors would not make smaller: as it is."""
    return tuple(
        rank
        if (rank := layer_factors.fitting_rank(kept, *_shape(member))) * sum(_shape(member))
        < np.prod(_shape(member))
        else 0
        for member in group.members
    )


def _greedy(group: Group, kept: float) -> tuple[int, ...]:
    """Ranks with the least sum of losses: in the unit of the losses where all have one, else each over its layer's energy."""
    ways = [_ways(member, bool(member.result.get("one_unit"))) for member in group.members]
    whole = float(sum(np.prod(_shape(member)) for member in group.members))
    least = budget.cheapest(ways) / whole
    if least > kept:
        raise MethodError(
            f"{group.name}: {kept:g} of the numbers cannot be met, rank 1 of every layer takes {least:.4f}; ask for more"
        )
    chosen = budget.dealt(ways, kept * whole)
    return tuple(0 if way == len(ways[n].cost) - 1 else way + 1 for n, way in enumerate(chosen))


def _losses(member: Member) -> Tensor | None:
    """[rank]: what ranks 0, 1, ... lose, where the artifact has ranks to choose from."""
    if "squared" in member.arrays:
        return joint_factors.lost(member.arrays["squared"])
    return member.arrays.get("loss")


def _ways(member: Member, one_unit: bool) -> Ways:
    """Ranks 1, 2, ... that save numbers, and at last the layer as it is."""
    outputs, inputs = _shape(member)
    losses = _losses(member)
    assert losses is not None
    loss = losses.double().cpu().numpy()
    most = min(len(loss) - 1, (outputs * inputs - 1) // (outputs + inputs))
    scale = 1.0 if loss[0] <= 0 else float(loss[0])
    if one_unit:  # losses are means over rows, of which each counts once
        scale = 1.0 / float(member.result["n_rows"])
    cost = np.concatenate([np.arange(1.0, most + 1) * (outputs + inputs), [float(outputs * inputs)]])
    return Ways(cost, np.concatenate([loss[1 : most + 1] / scale, [0.0]]))


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


class Candidates:
    """Candidates that were carried, to be made of a network."""

    def __init__(self, carry: State) -> None:
        plan = json.loads(bytes(carry[PLAN].cpu().numpy()))
        self.groups: list[dict[str, Any]] = plan["groups"]
        self.all = [Candidate(**{**one, "ranks": tuple(one["ranks"])}) for one in plan["candidates"]]
        self._carry = carry

    def made(self, network: torch.nn.Module, candidate: Candidate) -> dict[str, CompressedLayer]:
        """Put the candidate's layers into a network; by their paths: none where the network itself is sliced.

        Raises:
            MethodError: if a module is no linear layer, or its weight is used elsewhere too; if the network cannot be sliced.
        """
        if self.is_sliced(candidate):
            self._slice(network, candidate)
            return {}
        group, layers = self.groups[candidate.group], {}
        for number, (places, result) in enumerate(zip(group["places"], group["results"], strict=True)):
            arrays = self._arrays(candidate.group, number)
            for place in (Place(*place) for place in places if candidate.ranks[number]):
                choice = {"rank": candidate.ranks[number], "member": place.member, "group": f"group {number}"}
                layer, kind = layer_of(network, place.module), KINDS[self.kind(candidate)]
                layers[place.module] = kind.of(arrays, result, choice | {"bits": candidate.bits}, layer)
        for path, made in layers.items():
            put(network, path, made)
        tie(network)
        return layers

    def kind(self, candidate: Candidate) -> str:
        """Of its layers."""
        kind: str = self.groups[candidate.group]["kind"]
        return kind if candidate.bits is None else f"{kind}_quantised"

    def layers(self, candidate: Candidate) -> tuple[Layer, ...]:
        """What stands where."""
        group = self.groups[candidate.group]
        ranked = bool({"left", "directions"} & set(_reads(group["kind"])))
        return tuple(
            Layer(
                module=place[0],
                kind=self.kind(candidate) if rank else None,
                rank=rank if rank and ranked else None,
            )
            for places, rank in zip(group["places"], candidate.ranks, strict=True)
            for place in places
        )

    def modules(self, candidate: Candidate) -> list[str]:
        """Paths of the layers that may be replaced."""
        if self.is_sliced(candidate):
            return []
        return [place[0] for places in self.groups[candidate.group]["places"] for place in places]

    def is_sliced(self, candidate: Candidate) -> bool:
        """Whether the whole network is another one, of a narrower stream."""
        return bool(self.groups[candidate.group]["kind"] == sliced.KIND)

    def architecture(self, candidate: Candidate) -> dict[str, Any]:
        """What a file tells of such a network; nothing of others."""
        if not self.is_sliced(candidate):
            return {}
        return {"architecture": {"kind": sliced.KIND, "widths": list(candidate.ranks)}}

    def _slice(self, network: torch.nn.Module, candidate: Candidate) -> None:
        group = self.groups[candidate.group]
        modules = tuple(place[0] for places in group["places"] for place in places)
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


def check_layers(groups: Sequence[Group], inputs: Inputs) -> None:
    """Refuse artifacts of layers that the network does not have.

    Raises:
        MethodError: with both shapes.
    """
    for group in groups:
        if group.kind == sliced.KIND:
            _check_norms(group, inputs)
            continue
        for place in (place for places in group.places for place in places):
            shape, wanted = inputs.parameters.get(f"{place.module}.weight"), (place.outputs, place.inputs)
            if shape not in (wanted, wanted[::-1]):
                raise MethodError(
                    f"{group.name}: the layer {place.module} of {wanted} outputs and inputs is not in the network, whose weight of that "
                    f"name is {shape or 'missing, not trained, or that of another layer too'}; connect artifacts of the same network"
                )


def _check_norms(group: Group, inputs: Inputs) -> None:
    width = (int(group.members[0].result["width"]),)
    for path in group.modules:
        shape = inputs.parameters.get(f"{path}.weight")
        if shape != width:
            raise MethodError(
                f"{group.name}: the norm {path} of {width[0]} features is not in the network, whose weight of that name is "
                f"{shape or 'missing, or not trained'}; connect artifacts of the same network, at the inputs of its norms"
            )

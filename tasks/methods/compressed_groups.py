"""Artifacts of layers that belong together: the layers that they tell of, and whether a network has them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from schemas.base import canonical_json
from schemas.errors import MethodError
from schemas.stage import parameter_name, site_of
from tasks.compressed import sliced
from tasks.compressed.experts import MergedExperts
from tasks.methods.contract import Inputs, Member
from tasks.numerics import joint_factors


class Place(NamedTuple):
    """A layer that an artifact tells of."""

    module: str
    """Its path: what is replaced."""
    member: int
    """Its place among the layers of the artifact."""
    outputs: int
    inputs: int
    linear: str
    """The linear layer of this shape whose map is needed: the layer itself, or the router of a mixture of experts."""


class Group(NamedTuple):
    """The artifacts of one method with one set of options."""

    name: str
    members: tuple[Member, ...]

    @property
    def kind(self) -> str:
        """Of the layers that they make."""
        return str(self.members[0].result["kind"])

    @property
    def sliced(self) -> bool:
        """Whether it stands for a whole network of a narrower stream."""
        return self.kind == sliced.KIND

    @property
    def one_unit(self) -> bool:
        """Whether losses of all its layers are in one unit."""
        return all(member.result.get("one_unit") for member in self.members)

    @property
    def places(self) -> tuple[tuple[Place, ...], ...]:
        """The layers of each artifact; each norm by itself, where the whole network is sliced."""
        if self.sliced:
            sites = [site for member in self.members for site in member.result["sites"]]
            return tuple((Place(path, 0, 0, 0, path),) for site in sites for path in (site_of(site).module,))
        return tuple(places_of(member) for member in self.members)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all layers; of the norms, where the whole network is sliced."""
        return tuple(place.module for places in self.places for place in places)


def places_of(member: Member) -> tuple[Place, ...]:
    """The layer of the site, or those whose weights the artifact names."""
    result, site = member.result, site_of(member.site)
    if result["kind"] == MergedExperts.kind:
        router = parameter_name(str(member.config["router"]), site)
        shape = len(member.arrays["cluster"]), member.arrays["first"].shape[2]
        return (Place(site.module, 0, *shape, router),)
    if "weights" not in result:
        return (Place(site.module, 0, int(result["outputs"]), int(result["width"]), site.module),)
    names = [parameter_name(name, site).removesuffix(".weight") for name in result["weights"]]
    width = int(result["width"])
    outputs = result.get("outputs", [width] * len(names))  # attention's layers are as wide as the network
    return tuple(Place(path, k, int(outputs[k]), width, path) for k, path in enumerate(names))


def shape_of(member: Member) -> tuple[int, int]:
    """Outputs of all layers of an artifact, and their inputs."""
    places = places_of(member)
    return sum(place.outputs for place in places), places[0].inputs


def losses_of(member: Member) -> Tensor | None:
    """[rank]: what ranks 0, 1, ... lose, where the artifact has ranks to choose from."""
    if "squared" in member.arrays:
        return joint_factors.lost(member.arrays["squared"])
    return member.arrays.get("loss")


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


def check_layers(groups: Sequence[Group], inputs: Inputs) -> None:
    """Refuse artifacts of layers that the network does not have.

    Raises:
        MethodError: with both shapes.
    """
    for group in groups:
        if group.sliced:
            _check_norms(group, inputs)
            continue
        for place in (place for places in group.places for place in places):
            shape, wanted = inputs.parameters.get(f"{place.linear}.weight"), (place.outputs, place.inputs)
            if shape not in (wanted, wanted[::-1]):
                raise MethodError(
                    f"{group.name}: the layer {place.linear} of {wanted} outputs and inputs is not in the network, whose weight of that "
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

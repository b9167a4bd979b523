"""Parameters of a capture's network, for methods that read weights beside rows."""

from collections.abc import Mapping
from types import ModuleType

from torch import Tensor

from schemas.base import Frozen
from schemas.capture import CaptureSpec
from schemas.errors import MethodError, UnknownNameError, nearest
from schemas.stage import site_of
from tasks.extract.models import Network, network
from tasks.extract.turns import FORWARDS

MODULE = "{module}"
"""In the name of a parameter: the path of the module of the site, or that the site's parameter belongs to."""
HOLDERS = ("{parent}", "{grandparent}")
"""The same of the module that holds it, and of the one that holds that."""
TURNED = ("Conv1D",)
"""Modules of linear maps that store them as [in, out], by the name of their class (transformers: GPT-2 and its kin)."""


def wanted(module: ModuleType, config: Frozen, site: str) -> dict[str, str]:
    """Parameters that a method reads: name as written to name in the network; none for most methods."""
    if not hasattr(module, "parameters"):
        return {}
    place = site_of(site)
    owner = place.module.rpartition(".")[0] if place.is_parameter else place.module
    return {name: _resolved(name, owner).lstrip(".") for name in module.parameters(config)}


def _resolved(name: str, owner: str) -> str:
    """A name with the paths of modules in their places; what holds the network is the network."""
    for place in (MODULE, *HOLDERS):
        name = name.replace(place, owner)
        owner = owner.rpartition(".")[0]
    return name


def load_parameters(
    specs: list[CaptureSpec], names: Mapping[str, str], device: str = "cpu"
) -> dict[str, Tensor]:
    """Parameters of the network that some captures are of, in the dtype in which it computes.

    The map of a linear layer is [out, in], also where its module stores it the other way.

    Args:
        specs: captures of one network.
        names: from `wanted`.
        device: where the tensors go; the network itself is loaded on the CPU, once per process.

    Returns:
        By the name as written.

    Raises:
        MethodError: if the captures have no network, or several, or a parameter was not in the checkpoint.
        UnknownNameError: if the network has no such parameter.
    """
    if not names:
        return {}
    spec = specs[0]
    if spec.request.model.kind == "recorded":
        raise MethodError(
            f"the method reads the parameters {', '.join(names.values())} of a network, and capture {spec.id} is of recorded steps, "
            "which have none: connect a capture of the network, such as one of the training's last checkpoint"
        )
    if len({other.weights for other in specs}) > 1:
        raise MethodError(
            f"the method reads the parameters {', '.join(names.values())}, and its {len(specs)} captures are of different networks; use "
            "a stage for each"
        )
    net = network(spec.request.model, "cpu", spec.request.precision.threads, spec.weights)
    return {name: _parameter(net, path).to(device) for name, path in names.items()}


def _parameter(net: Network, name: str) -> Tensor:
    with FORWARDS.alone():  # another thread's forward may have put other tensors in their place
        there = dict(net.module.named_parameters(remove_duplicate=False))  # tied ones under all their names
    if name not in there:
        raise UnknownNameError(f"the network has no parameter {name!r}; nearest: {nearest(name, there)}")
    if name in net.untrained:
        raise MethodError(
            f"parameter {name} was not in the checkpoint and has no values; load the network with another head, or name another"
        )
    value = there[name].detach()
    if value.is_meta:
        raise MethodError(f"parameter {name} lies on no device; load the network with device_map: none")
    owner = net.module.get_submodule(name.rpartition(".")[0])
    turned = type(owner).__name__ in TURNED and value.ndim == 2
    return value.T.contiguous() if turned else value

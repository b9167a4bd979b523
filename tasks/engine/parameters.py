"""Parameters of a capture's network, for methods that read weights beside rows."""

from collections.abc import Mapping
from types import ModuleType

from torch import Tensor

from schemas.base import Frozen
from schemas.capture import CaptureSpec
from schemas.errors import MethodError, UnknownNameError, nearest
from schemas.stage import parameter_name, site_of
from tasks.compressed.network import TURNED
from tasks.extract.models import Network, network
from tasks.extract.turns import FORWARDS


def wanted(module: ModuleType, config: Frozen, site: str) -> dict[str, str]:
    """Parameters that a method reads: name as written to name in the network; none for most methods."""
    if not hasattr(module, "parameters"):
        return {}
    return {name: parameter_name(name, site_of(site)) for name in module.parameters(config)}


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

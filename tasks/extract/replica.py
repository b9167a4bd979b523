"""A network of a thread's own: modules, hooks and buffers are copied, parameters are shared."""

import copy
import threading
from collections.abc import Callable

import torch
from torch import nn

from tasks.extract.draws import draws
from tasks.extract.models import Network
from tasks.extract.turns import FORWARDS

KNOWN = ("torch", "transformers", "torchvision", "timm")
"""Packages whose modules keep what they change in a forward in their own attributes and buffers. Others may keep it anywhere: in a
global, in a closure, in the parameters themselves. No look at one forward could tell."""

_made = threading.local()
_checking = threading.Lock()
_checked: list[tuple[nn.Module, bool]] = []
"""The last network of the process, and whether it draws random numbers."""


def replica(network: Network, forward: Callable[[Network], object]) -> Network:
    """The network for the calling thread, which may run its forwards beside those of other threads.

    It is made once per thread and network. One that has modules of other packages than `KNOWN`, or functions with variables of
    their own, one that draws random numbers, cannot be copied, or is spread over devices, is given back as it is: its forwards take
    turns.

    Args:
        network: of the process.
        forward: runs it once, alone, to see whether it draws; what it raises is raised.

    Cost: one forward for each network of the process, and for each thread the modules and buffers; no parameter is copied.
    """
    held: tuple[Network, Network] | None = getattr(_made, "held", None)
    if held is None or held[0].module is not network.module:
        _made.held = None  # else an old network would stay while the new one is copied
        alone = not all(_is_known(part) for part in network.module.modules()) or _draws(network, forward)
        held = _made.held = (network, network if alone else _copied(network))
    return held[1]


def _is_known(part: nn.Module) -> bool:
    """Whether a module's code is that of a known package: no generated forward, no hook, no function bound to variables."""
    generated = isinstance(part, (torch.fx.GraphModule, torch.jit.ScriptModule))
    hooked = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    bound = any(getattr(value, "__closure__", None) for value in vars(part).values())
    return type(part).__module__.partition(".")[0] in KNOWN and not (generated or hooked or bound)


def _draws(network: Network, forward: Callable[[Network], object]) -> bool:
    with _checking:
        if not (_checked and _checked[0][0] is network.module):
            _checked[:] = [(network.module, draws(lambda: forward(network)))]
        return _checked[0][1]


def _copied(network: Network) -> Network:
    if hasattr(network.module, "hf_device_map"):
        return network
    shared = {id(parameter): parameter for parameter in network.module.parameters()}
    try:
        with (
            FORWARDS.together()
        ):  # the network itself is used alone: else hooks of a forward under way would be copied too
            return network._replace(module=copy.deepcopy(network.module, shared), own=True)
    except Exception:  # noqa: BLE001  a module may hold anything, such as a lock, which cannot be copied
        return network

"""A network of a thread's own: modules, hooks and buffers are copied, parameters are shared."""

import copy
import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import nn

from tasks.extract.draws import draws
from tasks.extract.known import is_known
from tasks.extract.models import Network
from tasks.extract.turns import FORWARDS

_checking = threading.Lock()
_copyable: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
"""Networks of the process, and whether threads may copy them."""


class _Copies(threading.local):
    """A thread's own copies; they go with the network that they are copies of."""

    def __init__(self) -> None:
        self.of: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()


_copies = _Copies()


def replica(network: Network, forward: Callable[[Network], object]) -> Network:
    """The network for the calling thread, which may run its forwards beside those of other threads.

    It is made once per thread and network. One that holds other code than that of known packages (`tasks.extract.known`), one that
    draws random numbers, cannot be copied, or is spread over devices, is given back as it is: its forwards take turns.

    Args:
        network: of the process.
        forward: runs it once, whole and alone, to see whether it draws; what it raises is raised.

    Cost: one forward for each network of the process, and for each thread the modules and buffers; no parameter is copied.
    """
    if network.module not in _copies.of:
        _copies.of.clear()  # else an old one could stay while the new one is copied
        _copies.of[network.module] = _copied(network.module) if _may_copy(network, forward) else None
    own = _copies.of[network.module]
    return network if own is None else network._replace(module=own, own=True)


def _may_copy(network: Network, forward: Callable[[Network], object]) -> bool:
    with _checking:
        found = _copyable.get(network.module)
        if found is None:
            found = is_known(network.module) and not draws(lambda: forward(network))
            _copyable[network.module] = found
        return found


def _copied(module: nn.Module) -> nn.Module | None:
    """None where it cannot be copied."""
    if hasattr(module, "hf_device_map"):
        return None
    shared = {id(parameter): parameter for parameter in module.parameters()}
    try:
        with (
            FORWARDS.together()
        ):  # the network itself is used alone: else hooks of a forward under way would be copied too
            return copy.deepcopy(module, shared)
    except Exception:  # noqa: BLE001  a module may hold anything, such as a lock, which cannot be copied
        return None

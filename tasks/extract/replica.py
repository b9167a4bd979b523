"""A network of a thread's own: modules, hooks and buffers are copied, parameters are shared."""

import copy
import threading

from tasks.extract.models import Network
from tasks.extract.turns import FORWARDS

_made = threading.local()


def replica(network: Network) -> Network:
    """The network for the calling thread, which may run its forwards beside those of other threads.

    It is made once per thread and network. One that cannot be copied, or is spread over devices, is given back as it is: its
    forwards take turns.

    Args:
        network: of the process.

    Cost: the modules and buffers; no parameter is copied.
    """
    held: tuple[Network, Network] | None = getattr(_made, "held", None)
    if held is None or held[0].module is not network.module:
        held = _made.held = (network, _copied(network))
    return held[1]


def _copied(network: Network) -> Network:
    if hasattr(network.module, "hf_device_map"):
        return network
    shared = {id(parameter): parameter for parameter in network.module.parameters()}
    try:
        with FORWARDS.alone():  # else hooks of a forward under way would be copied too
            return network._replace(module=copy.deepcopy(network.module, shared), own=True)
    except Exception:  # noqa: BLE001  a module may hold anything, such as a lock, which cannot be copied
        return network

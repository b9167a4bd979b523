"""Layers of one group that share tensors: each computes its own outputs, and the tensors are held, saved and counted once.

Layers are replaced one by one, so each is made with tensors of its own and works alone. `tie(network)` then lets the first layer of every
group hold them for all: only its state dict has them, under `shared.`, and its `spec` says `holds`. Who rebuilds a network makes all layers
by `empty(**spec)`, puts them in their places, calls `tie(network)`, and loads the state dict (the last two in any order).

What is saved is numbers, not time: every layer computes its own product with what is shared.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tasks.compressed.layer import CompressedLayer, Number


class SharedTensors(nn.Module):
    """Named parameters."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors as they are, laid out as a file has them."""
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.contiguous()))


class SharedLayer(CompressedLayer):
    """A layer that shares tensors with the others of its group."""

    shared: SharedTensors | None
    """None where another layer of the group holds them."""

    def __init__(self, group: str, tensors: Mapping[str, Tensor] | None) -> None:
        """Hold tensors, or wait for `tie`.

        Args:
            group: a name that no other group of the network has.
            tensors: None where another layer of the group holds them.
        """
        super().__init__()
        self.group = group
        self.shared = None if tensors is None else SharedTensors(tensors)
        self._elsewhere: list[SharedTensors] = []  # a list, or the module would be one of this layer's own

    def held(self, name: str) -> Tensor:
        """A shared tensor.

        Raises:
            RuntimeError: before `tie`, where another layer holds it.
        """
        if self.shared is not None:
            return self.shared.get_parameter(name)
        if not self._elsewhere:
            raise RuntimeError(
                f"this layer shares tensors of the group {self.group!r} that another layer holds: call "
                "tasks.compressed.shared.tie(network) after all its layers are in place"
            )
        return self._elsewhere[0].get_parameter(name)

    def refer_to(self, tensors: SharedTensors) -> None:
        """Use tensors that another layer holds, and hold none."""
        self.shared, self._elsewhere = None, [tensors]

    def spec(self) -> dict[str, Number]:
        """See `CompressedLayer`."""
        return {"group": self.group, "holds": self.shared is not None, **self.sizes()}

    @abstractmethod
    def sizes(self) -> dict[str, Number]:
        """The rest of what `spec` gives."""


def tie(network: nn.Module) -> None:
    """Let the first layer of each group that holds tensors hold them for all of the group; a tied network stays as it is.

    Raises:
        ValueError: if no layer of a group holds tensors, or two hold different ones.
    """
    groups: dict[str, list[SharedLayer]] = {}
    for module in network.modules():
        if isinstance(module, SharedLayer):
            groups.setdefault(module.group, []).append(module)
    for group, layers in groups.items():
        holders = [layer.shared for layer in layers if layer.shared is not None]
        if not holders:
            raise ValueError(
                f"no layer of the group {group!r} holds its tensors, found {len(layers)} that refer to them: the layer that held them "
                "was replaced; make the group again"
            )
        for other in holders[1:]:
            _refuse_different(group, holders[0], other)
        for layer in layers:
            if layer.shared is not holders[0]:
                layer.refer_to(holders[0])


def _refuse_different(group: str, first: SharedTensors, other: SharedTensors) -> None:
    a, b = first.state_dict(), other.state_dict()
    if a.keys() != b.keys() or any(not torch.equal(a[name], b[name]) for name in a):
        raise ValueError(
            f"two layers of the group {group!r} hold different tensors: give each group of layers a name of its own"
        )

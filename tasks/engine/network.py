"""The network of a capture as a method sees it: batches of its samples, with their losses."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.capture import CaptureSpec
from schemas.errors import DataError, MethodError
from schemas.layout import Space
from schemas.stage import NETWORK, RowsRef
from tasks.engine.source import Part, Rows
from tasks.extract.batches import Batch, pack
from tasks.extract.collect import forward, running
from tasks.extract.data import open_source
from tasks.extract.encode import make_encoder
from tasks.extract.losses import Objective
from tasks.extract.models import Network, network
from tasks.extract.turns import FORWARDS
from tasks.gradients import make_objective
from tasks.methods.contract import Gives, NetworkView
from tasks.store.location import Location

UNIT_SAMPLES = 64
"""Samples of a block."""


class NetworkPart(Part):
    """The samples of a capture, cut into blocks of a fixed size, whatever its row spaces are."""

    def __init__(self, root: Location, ref: RowsRef) -> None:
        super().__init__(root, ref)
        n = self.spec.layout.n_samples
        self.space = Space(
            name=NETWORK,
            n_rows=n,
            per_sample=1,
            chunk_rows=UNIT_SAMPLES,
            shard_rows=UNIT_SAMPLES,
            unit_shards=1,
        )

    @property
    def keeps_rows(self) -> bool:
        """No rows are read."""
        return True

    def column(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Samples are their own rows."""
        return np.arange(start, self.space.n_rows if stop is None else stop, dtype=np.int64)


class NetworkSource:
    """The samples of a port that takes a network; rows have no values."""

    of_rows: tuple[str, ...] = ()
    """Samples have no tokens of their own."""

    def __init__(self, root: Location, refs: Sequence[RowsRef]) -> None:
        self.parts: Sequence[Part] = [NetworkPart(root, ref) for ref in refs]
        self.widths = (0,)
        self.shapes: tuple[tuple[int, ...] | None, ...] = (None,)
        self.categories: dict[str, tuple[str, ...]] = {}
        self.refs = (tuple(refs),)

    def n_ok(self, part: int, start: int, stop: int) -> int:
        """See `Source`."""
        return int(self.parts[part].ok[start:stop].sum())

    def good_samples(self, part: int, start: int, stop: int) -> np.ndarray:
        """See `Source`."""
        good: np.ndarray = np.flatnonzero(self.parts[part].ok[start:stop]) + start
        return good

    def part_rows(self, part: int, start: int, stop: int) -> Rows:
        """See `Source`."""
        here = self.parts[part]
        sample = self.good_samples(part, start, stop)
        return Rows((), sample, np.zeros_like(sample), sample, {}, here)


class CapturedNetwork:
    """Some samples of a capture with its network: see `tasks.methods.contract.NetworkBlock`."""

    def __init__(self, part: Part, samples: np.ndarray, device: str) -> None:
        self._spec = part.spec
        self._device = device
        self._network = open_network(part.spec, device)
        self._samples = samples
        self._index = np.asarray(part.group["samples/source_index"][:], dtype=np.int64)[samples]
        self.parameters: Mapping[str, Tensor] = trainable(self._network)

    def copy(self) -> nn.Module:
        """See `NetworkBlock`."""
        with FORWARDS.alone():  # another thread's forward may have put other tensors in their place
            module = self._network.module
            tensors = [*module.parameters(), *module.buffers()]
            return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}).eval()

    def batches(self) -> Iterator[NetworkView]:
        """See `NetworkBlock`."""
        objective = make_objective(self._spec)
        for places, batch in self._kept if len(self._index) <= UNIT_SAMPLES else self.encoded():
            with _twice(self._network, batch, self._spec):
                yield View(self._network, batch, objective, places)

    @cached_property
    def _kept(self) -> list[tuple[Tensor, Batch]]:
        """Those of a unit: methods go through them again and again."""
        return list(self.encoded())

    def encoded(self) -> Iterator[tuple[Tensor, Batch]]:
        """Batches with their rows."""
        request = self._spec.request
        if len(self._index) == 0:
            return
        source = open_source(request.data, self._spec.partition)
        if source.fingerprint != self._spec.data:
            raise DataError(
                "the data are not those that were captured; plan the run again: changed data are another capture"
            )
        encoder = make_encoder(source, self._index, request.model, request)
        lengths = encoder.lengths().tolist()
        packed = pack(lengths, request.batch_tokens, request.batch_samples, request.batch_overhead)
        for places in packed:
            yield torch.tensor(places), encoder.batch(places)


class View:
    """See `tasks.methods.contract.NetworkView`."""

    def __init__(self, network: Network, batch: Batch, objective: Objective, rows: Tensor) -> None:
        self.n = batch.n_samples
        self.rows = rows
        self.mask = batch.mask
        self.gives: Gives = objective.gives
        self.tells = objective.tells
        self.targets = (
            objective.count(batch) if self.gives == "tokens" else torch.ones(self.n, dtype=torch.int64)
        )
        self._network, self._batch, self._objective = network, batch, objective

    def losses(self, at: Mapping[str, Tensor] | None = None) -> Tensor:
        """See `NetworkView`."""
        return self._objective(self._run(at), self._batch)

    def output(self, at: Mapping[str, Tensor] | None = None, module: nn.Module | None = None) -> Tensor:
        """See `NetworkView`."""
        return self._objective.tensor(self._run(at, module))

    def rows_of(self, output: Tensor) -> Tensor:
        """See `NetworkView`."""
        return self._objective.rows(output, self._batch)

    def right(self, output: Tensor) -> Tensor:
        """See `NetworkView`."""
        return self._objective.right(output, self._batch)

    def loss_of(self, output: Tensor) -> Tensor:
        """See `NetworkView`."""
        return self._objective.of_tensor(output, self._batch)

    def summed(self, losses: Tensor) -> Tensor:
        """See `NetworkView`."""
        return self._objective.summed(losses, self.targets.to(losses.device))

    def ends(self) -> tuple[Tensor, Tensor]:
        """See `NetworkView`."""
        floating = [name for name, value in self._batch.inputs.items() if value.is_floating_point()]
        if len(floating) == 1:
            value = self._batch.inputs[floating[0]].to(self._network.device, self._network.input_dtype)
            given = value.detach().clone().requires_grad_()
            batch = self._batch._replace(inputs=self._batch.inputs | {floating[0]: given})
            return given, self._objective.tensor(forward(self._network, batch))
        words = getattr(self._network.module, "get_input_embeddings", lambda: None)()
        if floating or not isinstance(words, nn.Module):
            raise MethodError(
                f"the network has {len(floating)} floating inputs and {'an' if words is not None else 'no'} embedding of words: "
                "there is no one input that can vary"
            )
        held: list[Tensor] = []

        def opened(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            held.append(output.detach().clone().requires_grad_())
            return held[-1]

        handle = words.register_forward_hook(opened)
        try:
            output = self._objective.tensor(self._run())
        finally:
            handle.remove()
        return held[-1], output

    def _run(self, at: Mapping[str, Tensor] | None = None, module: nn.Module | None = None) -> Any:
        module = self._network.module if module is None else module
        if at is not None:
            module = _At(module, at)
        return forward(self._network._replace(module=module), self._batch)


class _At(nn.Module):
    """A network with other tensors in the place of some parameters."""

    def __init__(self, module: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._call = partial(torch.func.functional_call, module, dict(values))

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """What the network gives there."""
        return self._call(inputs, more)


@contextmanager
def _twice(network: Network, batch: Batch, spec: CaptureSpec) -> Iterator[None]:
    """The network in its turn, with graphs that have a derivative themselves, which fused attention has not."""
    with running(network, batch, spec.request.precision), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def open_network(spec: CaptureSpec, device: str) -> Network:
    """The network of a capture, once per process.

    Raises:
        MethodError: if the capture has no loss.
    """
    if spec.request.loss is None:
        raise MethodError(
            "the capture has no loss, which the method needs; give it one, such as loss: {kind: lm}"
        )
    return network(spec.request.model, device, spec.request.precision.threads, spec.weights)


def trainable(net: Network) -> dict[str, nn.Parameter]:
    """Parameters with a gradient, in the order of the network."""
    with FORWARDS.alone():  # another thread's forward may have put other tensors in their place
        named = dict(net.module.named_parameters())
    return {
        name: parameter
        for name, parameter in named.items()
        if parameter.requires_grad and parameter.is_floating_point() and name not in net.untrained
    }

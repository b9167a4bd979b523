"""One forward over a batch, and the rows of every wanted site out of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from schemas.capture import Precision, Rows
from schemas.errors import ModelError, ResourceError, StoreError
from schemas.layout import Site, SiteLayout
from tasks.extract.batches import Batch
from tasks.extract.geometry import kept_positions, space_size
from tasks.extract.guard import evaluating, seed_all, seeded, settle, undrawn
from tasks.extract.hooks import record
from tasks.extract.models import Network
from tasks.extract.pretrained import free_bytes
from tasks.extract.turns import FORWARDS, TakeTurns

Early = Callable[[str, Tensor], None]
"""Takes a site string and its rows, inside the forward."""


@dataclass(frozen=True)
class Selection:
    """Which rows of a flattened [sample x place, feature] tensor are kept, and what becomes of them."""

    index: Tensor | None
    """int64 [kept]: flat row numbers in (sample, place) order; None: all."""
    lengths: tuple[int, ...] | None
    """For the mean: kept rows of each sample."""
    empty: Tensor | None
    """Bool [sample]: where a pooled sample has no row at all; None: nowhere."""


def collect(
    network: Network,
    batch: Batch,
    sites: Sequence[SiteLayout],
    rows: Rows,
    precision: Precision,
    early: Early | None = None,
) -> dict[str, Tensor]:
    """The rows of `sites` for one batch, on the CPU, from one forward that ends at the last of them.

    Values are those that the network computed at the moment they passed the site, in the dtype it computed
    them in (float32 for means). Rows are in (sample, place) order: kept tokens in `tokens`, every kept
    place in a space of fixed size, one per sample where pooled or where the site has but one. A pooled
    sample without any kept row is NaN. The network, its mode and all random generators are left as they
    were. Threads of a process take turns at it, unless it is their own copy.

    Args:
        network: as loaded.
        batch: its inputs.
        sites: wanted, with the shapes of the dry run.
        rows: which of them.
        precision: seed and autocast.
        early: takes each site's rows as soon as they are there, while the forward goes on; not called for those of a GPU, still under way.

    Returns:
        Site string to tensor [row, feature]; on CUDA in pinned memory.

    Raises:
        ModelError: if a site is not reached or has another shape than in the dry run.
        ResourceError: if the device runs out of memory.
        TakeTurns: if a thread's own copy failed, or drew random numbers.

    Cost: one forward up to the last site, and one copy of what is kept.
    """
    found: dict[str, Tensor] = {}
    sink = RowSink(batch, {layout.site: layout for layout in sites}, rows, found, early)
    with (
        running(network, batch, precision),
        torch.no_grad(),  # and not inference mode, in which a network could not differentiate anything
        record(network.module, [layout.site for layout in sites], sink),
    ):
        forward(network, batch)
    sink.finish()
    return {str(layout.site): found[str(layout.site)] for layout in sites}


@contextmanager
def running(network: Network, batch: Batch, precision: Precision) -> Iterator[None]:
    """Whatever a network may do with a batch: in evaluation mode, seeded, in its turn, and left as it was.

    Raises:
        ResourceError: if the device runs out of memory.
        TakeTurns: if a thread's own copy failed, or drew random numbers.
    """
    try:
        with (
            FORWARDS.together() if network.own else FORWARDS.alone(),
            undrawn() if network.own else _seeded(precision.seed, _devices(network)),
            evaluating(network.module),
            _autocast(network.device, precision),
        ):
            yield
    except Exception as error:
        if network.own and not isinstance(error, (StoreError, ResourceError, MemoryError)):
            raise TakeTurns(f"{type(error).__name__}: {error}") from error
        if isinstance(error, torch.OutOfMemoryError):
            raise ResourceError(_no_memory(network.device, batch)) from error
        raise


def seed_again(network: Network, precision: Precision) -> None:
    """The generators as a batch finds them; inside `running`."""
    if not network.own:  # else nothing may be drawn
        seed_all(precision.seed, _devices(network))


def forward(network: Network, batch: Batch) -> Any:
    """Calls the network on a batch: inputs on its device, floating ones in its dtype."""
    inputs = {name: _place(value, network) for name, value in batch.inputs.items()}
    if "" in inputs:
        first = inputs.pop("")
        return network.module(first, **inputs, **network.arguments)
    return network.module(**inputs, **network.arguments)


class RowSink:
    """Copies the kept rows out of each tensor while its module is still at work."""

    def __init__(
        self,
        batch: Batch,
        layouts: Mapping[Site, SiteLayout],
        rows: Rows,
        found: dict[str, Tensor],
        early: Early | None,
    ) -> None:
        self._batch = batch
        self._layouts = layouts
        self._rows = rows
        self._found = found
        self._early = early
        self._selections: dict[tuple[bool, int, torch.device], Selection] = {}
        self._devices: set[torch.device] = set()

    def __call__(self, site: Site, tensor: Tensor) -> None:
        layout = self._layouts[site]
        places = _places(tensor, layout, self._batch, self._rows)
        selection = self._selection(layout.tokens, places, tensor.device)
        moved = tensor.movedim(layout.feature_axis, -1)
        copied = self._found[str(site)] = _copy(moved, selection)
        if tensor.is_cuda:
            self._devices.add(tensor.device)
        if self._early is not None and tensor.device.type == "cpu":
            self._early(str(site), copied)

    def finish(self) -> None:
        """Waits for the copies that are still on their way from a GPU."""
        for device in self._devices:
            torch.cuda.synchronize(device)

    def _selection(self, tokens: bool, places: int, device: torch.device) -> Selection:
        key = (tokens, places, device)
        if key not in self._selections:
            keep = _keep(self._batch, tokens, places, self._rows)
            selection = _select(keep, self._rows.pooling if places > 1 or tokens else "none")
            index = None if selection.index is None else selection.index.to(device, non_blocking=True)
            self._selections[key] = replace(selection, index=index)
        return self._selections[key]


def _devices(network: Network) -> list[torch.device]:
    """GPUs whose generators it may draw from: it may be spread over several."""
    on_gpu = network.device.type == "cuda"
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if on_gpu else []


def _seeded(seed: int, devices: Sequence[torch.device]) -> AbstractContextManager[None]:
    settle()
    return seeded(seed, devices)


def _place(value: Tensor, network: Network) -> Tensor:
    dtype = network.input_dtype if value.is_floating_point() else None
    placed = value.to(device=network.device, dtype=dtype, non_blocking=True)
    # A network may write into what it is given, and the batch is used again.
    return placed.clone() if placed is value else placed


def _places(tensor: Tensor, layout: SiteLayout, batch: Batch, rows: Rows) -> int:
    """Rows per sample in a site's tensor, after checking that its shape is the one of the dry run."""
    samples, shape = batch.n_samples, tuple(tensor.shape)
    if layout.tokens:
        expected = None if batch.mask is None else int(batch.mask.shape[1])
    else:
        expected = None if rows.pooling != "none" else space_size(layout.space)
    if (
        len(shape) > layout.feature_axis
        and shape[0] == samples
        and shape[layout.feature_axis] == layout.width
    ):
        places = tensor.numel() // (samples * layout.width)
        if expected in (None, places):
            return places
    raise ModelError(
        f"{layout.site} has shape {shape} in a batch of {samples} samples; expected "
        f"{expected or 'any number of'} rows per sample and {layout.width} features "
        f"on axis {layout.feature_axis}, as in the dry run: "
        "its number of rows depends on the data, leave the site out"
    )


def _keep(batch: Batch, tokens: bool, places: int, rows: Rows) -> Tensor:
    """Bool [sample, place]: the rows that the policy keeps."""
    given = batch.keep if batch.keep is not None else batch.mask
    if tokens and given is not None:
        return given.cpu()
    kept = torch.zeros(places, dtype=torch.bool)
    chosen = range(places) if tokens else kept_positions(places, rows)
    kept[chosen.start : chosen.stop] = True
    return kept.expand(batch.n_samples, places)


def _select(keep: Tensor, pooling: str) -> Selection:
    counts = keep.sum(dim=1)
    if pooling in ("cls", "last"):
        places = torch.arange(keep.shape[1]).expand_as(keep)
        inside = (
            places.where(keep, keep.shape[1]).amin(1) if pooling == "cls" else places.where(keep, -1).amax(1)
        )
        start = torch.arange(keep.shape[0]) * keep.shape[1]
        empty = counts == 0
        return Selection((start + inside).where(~empty, 0), None, empty if bool(empty.any()) else None)
    index = None if bool(keep.all()) else keep.flatten().nonzero().flatten()
    return Selection(index, tuple(counts.tolist()) if pooling == "mean" else None, None)


def _copy(moved: Tensor, selection: Selection) -> Tensor:
    """The kept rows of a [sample, ..., feature] tensor, in memory of their own on the CPU.

    The result is made outside inference mode, so that later code may write into it.
    """
    if selection.lengths is not None:
        kept = _flat(moved) if selection.index is None else _flat(moved).index_select(0, selection.index)
        means = torch.stack([part.mean(dim=0) for part in torch.split(kept.float(), list(selection.lengths))])
        return _empty(means.shape, means).copy_(means, non_blocking=True)
    if selection.index is None:
        copy = _empty(moved.shape, moved).copy_(moved, non_blocking=True)
        return copy.flatten(0, -2)
    return _pick(_flat(moved), selection.index, selection.empty)


def _pick(flat: Tensor, index: Tensor, empty: Tensor | None) -> Tensor:
    out = _empty((len(index), flat.shape[1]), flat)
    if flat.is_cuda:
        out.copy_(flat.index_select(0, index), non_blocking=True)
    else:
        torch.index_select(flat, 0, index, out=out)
    if empty is not None:
        torch.cuda.synchronize(flat.device) if flat.is_cuda else None
        out[empty] = float("nan")
    return out


def _flat(moved: Tensor) -> Tensor:
    return moved.reshape(-1, moved.shape[-1])


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.empty(tuple(shape), dtype=like.dtype, pin_memory=like.is_cuda)


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    if precision.autocast == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision.autocast))


def _no_memory(device: torch.device, batch: Batch) -> str:
    shapes = ", ".join(str(tuple(value.shape)) for value in batch.inputs.values())
    return (
        f"{device} ran out of memory on inputs of {shapes}: {free_bytes(device):,} bytes are free; "
        "lower batch_tokens or batch_samples, or use a smaller dtype"
    )

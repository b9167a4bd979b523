"""Rows of one unit, gathered shard by shard in the store's order while batches arrive in any order."""

import mmap
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.layout import SiteLayout, Space
from schemas.model import FloatName

STORED: Mapping[FloatName, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.float32,  # Zarr has no bfloat16: its values lie in float32
}


_memory = threading.local()
"""Of each thread that fills shards: their memory, mapped outside the heap, used again for every shard of every unit."""
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Not shared with forked children."""


class Shard(NamedTuple):
    """One finished shard of every site."""

    number: int
    rows: dict[str, Tensor]
    """Site -> [row, feature] in the stored dtype; NaN where a sample failed. Valid until its memory is used again: see ShardBuffers."""
    early: frozenset[str] = frozenset()
    """Sites that were handed on before: see `ShardBuffers.put_early`."""


def to_stored(rows: Tensor, dtype: FloatName) -> tuple[Tensor, int]:
    """Rows in the stored dtype, and how many finite values that dtype could not hold.

    Args:
        rows: floating tensor of any shape.
        dtype: the store's dtype.
    """
    rounded = rows.to(torch.bfloat16).to(torch.float32) if dtype == "bfloat16" else rows.to(STORED[dtype])
    if dtype == "float32" and rows.dtype != torch.float64:
        return rounded, 0
    lost = torch.isfinite(rows) & ~torch.isfinite(rounded) if not _all_finite(rounded) else None
    return rounded, 0 if lost is None else int(lost.sum())


def is_finite(rows: Tensor) -> bool:
    """Whether every value is finite; reads the rows once, in the common case without a mask."""
    return _all_finite(rows)


def _all_finite(rows: Tensor) -> bool:
    total = rows.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(rows).all())


class ShardBuffers:
    """The shard of a unit that is being filled; shards are taken in order.

    The memory of shards, `shard_rows * sum(widths)` values for each set, belongs to the thread and is used again for every shard of every
    unit: a thread fills one unit at a time. Rows of later shards (a sample that straddles an edge) wait.
    """

    def __init__(
        self,
        space: Space,
        sites: Sequence[SiteLayout],
        unit: int,
        dtype: FloatName,
        written: Callable[[], None] = lambda: None,
        sets: int = 1,
        hand_on: Callable[[int, str, Tensor], None] = lambda _number, _site, _rows: None,
    ) -> None:
        """Begin with the unit's first shard.

        Args:
            space: of the unit.
            sites: of the space.
            unit: its number.
            dtype: the store's.
            written: returns when the shard taken `sets` shards ago is no longer needed; called before its memory is used again.
            sets: shards that are in memory at a time.
            hand_on: takes the number of a shard, a site, and all its rows there, before the shard is taken.
        """
        self.space = space
        self.sites = sites
        self.dtype: FloatName = dtype
        self.first, self.last = space.unit_rows(unit)
        self.saturated: dict[str, int] = {}
        """Site -> finite values of this unit's rows that the stored dtype cannot hold."""
        self._written = written
        self._sets = sets
        self._hand_on = hand_on
        self._early: dict[str, int] = {}
        """Sites of this shard that were handed on, with the finite values lost of their last batch."""
        self._number = space.unit_shard_range(unit).start
        self._rows: dict[str, Tensor] = {}
        self._has = torch.empty(0, dtype=torch.bool)
        self._later: list[tuple[dict[str, Tensor], Tensor]] = []

    def put(self, rows: Mapping[str, Tensor], destination: Tensor) -> None:
        """Scatter a batch.

        Args:
            rows: site -> [row, feature], of every site.
            destination: int64 [row], the store row of each, in this shard or a later one; rows outside the unit are left out.
        """
        inside = (destination >= self.first) & (destination < self.last)
        if not bool(inside.all()):
            rows = {site: values[inside] for site, values in rows.items()}
            destination = destination[inside]
        stored = {}
        for site, values in rows.items():
            lost = self._early.get(site)
            if lost is None:
                stored[site], lost = to_stored(values, self.dtype)
            if lost:
                self.saturated[site] = self.saturated.get(site, 0) + lost
        self._place(stored, destination)

    def completes(self, destination: Tensor) -> bool:
        """Whether a batch has exactly the rows that the shard still lacks."""
        low, high = self.space.shard_bounds(self._number)
        waiting = sum(int((rows < high).sum()) for _, rows in self._later)
        there = int(self._has.sum()) if self._rows else waiting
        inside = bool(((destination >= low) & (destination < high)).all())
        return inside and there + len(destination) == high - low

    def put_early(self, destination: Tensor, site: str, values: Tensor) -> None:
        """Place one site's rows of a batch that completes the shard, and hand the site on while the forward goes on to the next ones.

        `put` must follow with all rows of the batch, or `recall`. Rows that are not finite are left to them.
        """
        if is_finite(values):
            with torch.inference_mode(mode=False):  # what is made here outlives the forward
                self._open()
            stored, lost = to_stored(values, self.dtype)
            self._rows[site].index_copy_(0, destination - self.space.shard_bounds(self._number)[0], stored)
            self._early[site] = lost
            self._hand_on(self._number, site, self._rows[site])

    def recall(self) -> None:
        """The batch that was to complete the shard failed: all its sites are handed on again, with the shard."""
        self._early = {}

    def take(self) -> Shard:
        """The next shard, whose samples have all been put; rows never put are NaN."""
        self._open()
        missing = ~self._has
        if bool(missing.any()):
            for rows in self._rows.values():
                rows[missing] = float("nan")
        taken = Shard(self._number, self._rows, frozenset(self._early))
        self._rows, self._early, self._number = {}, {}, self._number + 1
        return taken

    def _place(self, rows: dict[str, Tensor], destination: Tensor) -> None:
        low, high = self.space.shard_bounds(self._number)
        mine = destination < high
        if not bool(mine.all()):
            self._later.append(({site: values[~mine] for site, values in rows.items()}, destination[~mine]))
            rows, destination = {site: values[mine] for site, values in rows.items()}, destination[mine]
        self._open()
        for site, values in rows.items():
            self._rows[site].index_copy_(0, destination - low, values)
        self._has[destination - low] = True

    def _open(self) -> None:
        """Take the memory of the shard being filled, at its first rows, and place what waited for it."""
        if self._rows:
            return
        self._written()
        low, high = self.space.shard_bounds(self._number)
        self._rows = {site: rows[: high - low] for site, rows in self._shard_set().items()}
        self._has = torch.zeros(high - low, dtype=torch.bool)
        waiting, self._later = self._later, []
        for rows, destination in waiting:
            self._place(rows, destination)

    def _shard_set(self) -> dict[str, Tensor]:
        """Site -> [shard_rows, feature], all in the thread's own memory."""
        dtype = STORED[self.dtype]
        sizes = [self.space.shard_rows * site.width for site in self.sites]
        every = _mapped(self._sets * sum(sizes) * dtype.itemsize).view(dtype).view(self._sets, -1)
        parts = torch.split(every[self._number % self._sets], sizes)
        return {
            str(site.site): part.view(-1, site.width) for site, part in zip(self.sites, parts, strict=True)
        }


def _mapped(n_bytes: int) -> Tensor:
    """uint8 [byte]: the thread's shard sets, which stay until another size is asked for."""
    held: Tensor | None = getattr(_memory, "held", None)
    if held is None or len(held) != n_bytes:
        held = _memory.held = torch.frombuffer(mmap.mmap(-1, n_bytes, **PRIVATE), dtype=torch.uint8)
    return held


def row_norms(shard: Shard, sites: Sequence[SiteLayout]) -> np.ndarray:
    """float32 [row, site]: the Euclidean norm of every stored row, NaN for failed ones."""
    norms = [torch.linalg.vector_norm(shard.rows[str(s.site)], dim=1, dtype=torch.float32) for s in sites]
    return torch.stack(norms, dim=1).numpy()


def flag_outliers(norms: np.ndarray, multiple: float) -> np.ndarray:
    """bool [row, site]: whether a row's norm exceeds a multiple of the site's median norm (failed rows never do)."""
    finite = np.isfinite(norms)
    median = np.array(
        [np.median(column[ok]) if ok.any() else np.inf for column, ok in zip(norms.T, finite.T, strict=True)]
    )
    flagged: np.ndarray = finite & (np.nan_to_num(norms) > multiple * median)
    return flagged

"""The writer of a unit: a thread beside the forward, so that encoding and disk overlap with the next shard's computation."""

import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from types import TracebackType

import numpy as np
from torch import Tensor

from schemas.capture import CaptureSpec
from schemas.errors import SubspanError
from schemas.layout import Site, UnitRef
from schemas.receipts import FileDigest
from tasks.buffers import Shard
from tasks.store.arrays import ShardWriter
from tasks.store.capture_spec import read_spec
from tasks.store.events import adopt, surroundings
from tasks.store.location import Location
from tasks.store.remote import REQUESTS
from tasks.store.shards import Staged

Written = Future[tuple[str, FileDigest, float]]
"""Path below the capture's folder, digest and seconds of one file."""


@lru_cache(maxsize=2)
def shard_writer(root: Location, capture: str) -> ShardWriter:
    """The writer of a capture, kept between the units of a process: reading the spec anew costs as much as writing some shards."""
    return ShardWriter(root, read_spec(root, capture), capture)


class UnitWriter:
    """Writes the shards of one unit. Leaving the `with` waits for all of them; what a write raised is raised there."""

    def __init__(self, root: Location, spec: CaptureSpec, unit: UnitRef) -> None:
        self.files: dict[str, FileDigest] = {}
        """Path below the capture's folder to digest, of what is written."""
        self.seconds = 0.0
        self.wait_seconds = 0.0
        """That its owner waited for it."""
        self._keep = spec.request.keep == "rows"
        self._space = spec.layout.space(unit.space)
        self._unit = unit
        self._writer = shard_writer(root, spec.id)
        threads = 1 if root.is_local else REQUESTS
        self._pool = ThreadPoolExecutor(threads, "shard-writer", adopt, (surroundings(),))
        self._open: list[Written] = []
        """Handed over since the last finished shard."""
        self._finished: list[list[Written]] = []
        """Finished shards that are not known to be written."""
        self._early: dict[str, Future[tuple[Staged, float]]] = {}
        """Sites of the shard that is being filled, written without their name."""

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
                self._settle(self._open)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for staged in self._early.values():
                self._drop(staged)

    def put_columns(self, shard: int, columns: dict[str, np.ndarray]) -> None:
        """Hand over the columns of a shard's rows; they are known before its forwards, and are written beside them."""
        for name, values in columns.items():
            self._submit(f"rows/{self._space.name}/{name}", shard, values)

    def put_early(self, shard: int, site: str, rows: Tensor) -> None:
        """Hand over one site of a shard whose last batch is still under way: it is written, and gets its name with the shard."""
        if self._keep:
            self._early[site] = self._pool.submit(self._stage, _array(site), shard, rows.numpy())

    def put(self, shard: Shard) -> None:
        """Hand over a finished shard, whose memory may be used again after `wait`."""
        for site, rows in shard.rows.items():
            staged = self._early.pop(site, None)
            if staged is not None and site in shard.early:
                self._open.append(self._pool.submit(self._publish, staged))
                continue
            if staged is not None:
                self._pool.submit(self._drop, staged)
            self._submit(_array(site), shard.number, rows.numpy())
        self._finished.append(self._open)
        self._open = []

    def wait(self, but: int = 0) -> None:
        """Wait until all finished shards are written, but for the last ones.

        Args:
            but: how many finished shards may still be under way.

        Raises:
            StoreError, ResourceError: if a write failed.
        """
        while len(self._finished) > but:
            self._settle(self._finished.pop(0))

    def _settle(self, writing: list[Written]) -> None:
        begun = time.perf_counter()
        for written in writing:
            name, digest, seconds = written.result()
            self.files[name] = digest
            self.seconds += seconds
        self.wait_seconds += time.perf_counter() - begun

    def put_norms(self, norms: np.ndarray, outliers: np.ndarray) -> None:
        """Hand over the norm and outlier columns [row, site] of the whole unit."""
        first, _ = self._space.unit_rows(self._unit.index)
        for shard in self._space.unit_shard_range(self._unit.index):
            low, high = self._space.shard_bounds(shard)
            base = f"rows/{self._space.name}"
            self._submit(f"{base}/norm", shard, norms[low - first : high - first])
            self._submit(f"{base}/outlier", shard, outliers[low - first : high - first])

    def _submit(self, path: str, shard: int, values: np.ndarray) -> None:
        if self._keep:
            self._open.append(self._pool.submit(self._write, path, shard, values))

    def _write(self, path: str, shard: int, values: np.ndarray) -> tuple[str, FileDigest, float]:
        begun = time.perf_counter()
        name, digest = self._writer.write(path, shard, values)
        return name, digest, time.perf_counter() - begun

    def _stage(self, path: str, shard: int, values: np.ndarray) -> tuple[Staged, float]:
        begun = time.perf_counter()
        staged = self._writer.stage(path, shard, values)
        return staged, time.perf_counter() - begun

    def _publish(self, staged: Future[tuple[Staged, float]]) -> tuple[str, FileDigest, float]:
        shard, seconds = staged.result()
        return *self._writer.publish(shard), seconds

    def _drop(self, staged: Future[tuple[Staged, float]]) -> None:
        """Remove what was staged in vain; whether it failed no longer matters."""
        with suppress(CancelledError, SubspanError):
            self._writer.drop(staged.result()[0])


def _array(site: str) -> str:
    return Site.parse(site).array

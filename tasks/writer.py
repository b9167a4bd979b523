"""The writer of a unit: a thread with a bounded queue, so that encoding and disk overlap with the next shard's forward."""

import queue
import threading
import time
from functools import lru_cache
from types import TracebackType

import numpy as np

from schemas.capture import CaptureSpec
from schemas.layout import Site, UnitRef
from schemas.receipts import FileDigest
from tasks.buffers import Shard
from tasks.store.arrays import ShardWriter
from tasks.store.location import Location
from tasks.store.samples import read_spec


@lru_cache(maxsize=2)
def shard_writer(root: Location, capture: str) -> ShardWriter:
    """The writer of a capture, kept between the units of a process: opening its arrays costs as much as writing a unit."""
    return ShardWriter(root, read_spec(root, capture), capture)


class UnitWriter:
    """Writes the shards of one unit. Leaving the `with` drains the queue; what a write raised is raised there."""

    def __init__(self, root: Location, spec: CaptureSpec, unit: UnitRef) -> None:
        self.files: dict[str, FileDigest] = {}
        """Path below the capture's folder to digest, of what is written."""
        self.seconds = 0.0
        self._keep = spec.request.keep == "rows"
        self._space = spec.layout.space(unit.space)
        self._unit = unit
        self._writer = shard_writer(root, spec.id)
        self._queue: queue.Queue[tuple[str, int, np.ndarray] | None] = queue.Queue(maxsize=0)
        # One shard at a time: the next one is filled in its memory, and writing takes a fraction of the next one's forwards.
        self._room = threading.Semaphore(1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shard-writer", daemon=True)

    def __enter__(self) -> "UnitWriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def put_columns(self, shard: int, columns: dict[str, np.ndarray]) -> None:
        """Hand over the columns of a shard's rows; they are known before its forwards, and are written beside them."""
        if not self._keep:
            return
        for name, values in columns.items():
            self._queue.put((f"rows/{self._space.name}/{name}", shard, values))

    def put(self, shard: Shard) -> None:
        """Hand over a finished shard; waits until the one before is written.

        Raises:
            StoreError, ResourceError: if an earlier write failed.
        """
        if not self._keep:
            return
        self._room.acquire()
        if self._error is not None:
            raise self._error
        for site, rows in shard.rows.items():
            self._queue.put((f"sites/{Site.parse(site).key}/activation", shard.number, rows.numpy()))
        self._queue.put(("", shard.number, np.empty(0)))

    def wait(self) -> None:
        """Wait until no shard is being written.

        Raises:
            StoreError, ResourceError: if a write failed.
        """
        with self._room:
            if self._error is not None:
                raise self._error

    def put_norms(self, norms: np.ndarray, outliers: np.ndarray) -> None:
        """Hand over the norm and outlier columns [row, site] of the whole unit."""
        if not self._keep:
            return
        first, _ = self._space.unit_rows(self._unit.index)
        for shard in self._space.unit_shard_range(self._unit.index):
            low, high = self._space.shard_bounds(shard)
            base = f"rows/{self._space.name}"
            self._queue.put((f"{base}/norm", shard, norms[low - first : high - first]))
            self._queue.put((f"{base}/outlier", shard, outliers[low - first : high - first]))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            path, shard, values = item
            if not path:
                self._room.release()
            elif self._error is None:
                self._write(path, shard, values)
            del item, values  # waiting for the next one must not keep this one

    def _write(self, path: str, shard: int, values: np.ndarray) -> None:
        begun = time.perf_counter()
        try:
            name, digest = self._writer.write(path, shard, values)
            self.files[name] = digest
        except BaseException as error:  # noqa: BLE001  raised in the unit's own thread, by put or at the end
            self._error = error
        self.seconds += time.perf_counter() - begun

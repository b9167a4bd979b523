"""Rows of a capture as shuffled batches for training, in this process or in a DataLoader's workers.

A buffer holds several shards. Batches are drawn from all of it; when a shard's worth has left, the next shard comes in.
So rows of far shards meet in a batch, every row comes exactly once per epoch, and no more than the buffer is in memory.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from schemas.stage import RowsRef
from tasks.engine.blocks import to_tensor
from tasks.engine.source import Rows, SiteSource, concatenate, n_rows, take
from tasks.store.location import Location

Batch = dict[str, Any]
"""`x` [row, feature]; `sample`, `position`, `index` int64 [row]; `labels`, a dict of [row] codes or numbers."""


class RowBatches(IterableDataset[Batch]):
    """Batches of one site's rows; see `Capture.torch_loader`. Picklable: workers open the store themselves."""

    def __init__(
        self,
        root: Location,
        ref: RowsRef,
        *,
        batch_rows: int,
        shuffle: bool,
        seed: int,
        drop_failed: bool,
        buffer_shards: int,
    ) -> None:
        super().__init__()
        self.root, self.ref = root, ref
        self.batch_rows, self.buffer_shards = batch_rows, buffer_shards
        self.shuffle, self.seed, self.drop_failed = shuffle, seed, drop_failed
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; workers that live on see it too."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Batch]:
        source = SiteSource(self.root, (self.ref,), labels=True, drop_failed=self.drop_failed)
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch = int(self._epoch)
        shards = np.arange(source.parts[0].space.n_shards)
        if self.shuffle:
            shards = self._generator(epoch, 0).permutation(shards)
        for rows in self._batches(source, shards[number::workers], self._generator(epoch, 1 + number)):
            yield _tensors(rows)
        if worker is None:
            self.set_epoch(epoch + 1)

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, epoch, stream))))

    def _batches(
        self, source: SiteSource, shards: np.ndarray, generator: np.random.Generator
    ) -> Iterator[Rows]:
        space = source.parts[0].space
        full = (self.buffer_shards - 1) * space.shard_rows if self.shuffle else 0
        buffer: Rows | None = None
        for number, shard in enumerate(shards):
            fresh = source.part_rows(0, *space.shard_bounds(int(shard)))
            buffer = fresh if buffer is None else concatenate([buffer, fresh])
            if self.shuffle and number + 1 < min(self.buffer_shards, len(shards)):
                continue
            if self.shuffle:
                buffer = take(buffer, generator.permutation(len(buffer.index)))
            last = number + 1 == len(shards)
            keep = 0 if last else max(full, self.batch_rows - 1)
            while len(buffer.index) > keep:
                yield take(buffer, slice(None, self.batch_rows))
                buffer = take(buffer, slice(self.batch_rows, None))

    @property
    def n_rows(self) -> int:
        """Rows of the site, failed ones included."""
        return n_rows(SiteSource(self.root, (self.ref,)))


def _tensors(rows: Rows) -> Batch:
    columns = {"x": rows.values[0], "sample": rows.sample, "position": rows.position, "index": rows.index}
    batch: Batch = {name: to_tensor(column, "cpu") for name, column in columns.items()}
    return batch | {"labels": {name: to_tensor(column, "cpu") for name, column in rows.labels.items()}}

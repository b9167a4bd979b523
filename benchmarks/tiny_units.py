"""What benchmarks of orchestration run: a network and data that cost nothing, and units that only leave a receipt."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from schemas.base import canonical_json
from schemas.receipts import FileDigest, Receipt
from tasks.drive import Driver
from tasks.fingerprint import fingerprint, worker_name
from tasks.store.location import Location
from tasks.store.paths import receipt_path
from tasks.unit import UnitDone, UnitJob, run_unit

FILES = 40
"""Named in a receipt: a unit of four shards at eight sites with two columns."""


def network(seed: int = 0) -> nn.Module:
    """One layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4))


class Rows(torch.utils.data.Dataset[Tensor]):
    """Vectors of four numbers."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.fingerprint = f"rows-{n}"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(index))


def rows(n: int = 8) -> Rows:
    """The data set."""
    return Rows(n)


def request(seed: int = 0, n: int = 8, shard_rows: int = 8) -> dict[str, Any]:
    """A capture of these, as a CaptureRequest in JSON."""
    here = "benchmarks.tiny_units"
    return {
        "model": {"kind": "factory", "factory": f"{here}:network", "arguments": {"seed": seed}},
        "data": {"source": {"kind": "factory", "factory": f"{here}:rows", "arguments": {"n": n}}},
        "sites": ["0"],
        "store": {"shard_rows": shard_rows, "chunk_rows": min(4, shard_rows), "unit_shards": 1},
    }


def leave_receipt(job: UnitJob) -> UnitDone:
    """No forward, no shard: a receipt of usual size, durable like any."""
    files = {
        f"sites/{n:040d}/activation/c/{job.unit.index}/0": FileDigest(bytes=1, blake3="0" * 64)
        for n in range(FILES)
    }
    receipt = Receipt(
        capture=job.capture, unit=job.unit, rows=1, files=files, seconds=0.0, forward_seconds=0.0, write_seconds=0.0, tokens=1,
        padded_tokens=1, peak_bytes=1, fingerprint=fingerprint("cpu"), worker=worker_name(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    data = canonical_json(receipt.with_digest())
    Location(job.root).create(receipt_path(job.capture, job.unit), data)
    return UnitDone(receipt=receipt, skipped=False, forwards=1)


class ReceiptsOnly:
    """A driver that runs `leave_receipt` for units, and notes how long that took and what memory this process held meanwhile."""

    def __init__(self, driver: Driver, every: int) -> None:
        self.driver, self.every = driver, every
        self.seconds = self.cpu_seconds = 0.0
        self.n = 0
        self.memory: list[tuple[int, int]] = []
        """Units done, resident bytes of this process: client, scheduler and nannies."""

    def __call__(
        self, function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any], None]
    ) -> None:
        """See `tasks.drive.Driver`."""
        process, begun, cpu = psutil.Process(), time.perf_counter(), time.process_time()

        def finished(result: Any) -> None:
            on_done(result)
            self.n += 1
            if self.n % self.every == 0:
                self.memory.append((self.n, process.memory_info().rss))

        self.driver(leave_receipt if function is run_unit else function, items, finished)
        self.seconds, self.cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu

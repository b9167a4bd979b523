"""What a run costs so far, step by step: kept while it works, from receipts and from what jobs say they took.

A summary at the end and the metrics meanwhile are both read from here.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from schemas.outcome import StepKind, StepWork
from tasks.drive import Driver
from tasks.fingerprint import worker_name
from tasks.measured import MeasuredDriver, Spent
from tasks.store.traffic import Traffic, traffic

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper ends in seconds, of a histogram of units and jobs."""
LOOK_SECONDS = 5.0
"""Between two counts of the workers that are there."""


@dataclass
class Step:
    """One capture, or stages that share reads, as it goes."""

    label: str
    kind: StepKind
    total: int
    """Units or jobs known so far."""
    found: int = 0
    """Of these, finished by an earlier run."""
    done: int = 0
    """Finished now."""
    skipped: int = 0
    """Of these, found finished by the worker that was given them."""
    failed: int = 0
    failed_samples: int = 0
    rows: int = 0
    tokens: int = 0
    worker_seconds: float = 0.0
    forward_seconds: float = 0.0
    write_seconds: float = 0.0
    wait_seconds: float = 0.0
    shards_read: int = 0
    elsewhere: Traffic = field(default_factory=Traffic)
    """Bytes of other processes."""
    slowest_seconds: float = 0.0
    in_bucket: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    begun: float = field(default_factory=time.perf_counter)
    seconds: float | None = None
    """None while it runs."""
    before: Traffic = field(default_factory=traffic)
    own: Traffic | None = None
    """Bytes of this process, once it is over."""

    def took(self, spent: Spent) -> None:
        """A unit or job came back."""
        self.done += 1
        self.worker_seconds += spent.seconds
        self.in_bucket[sum(spent.seconds > end for end in BUCKETS)] += 1
        self.slowest_seconds = max(self.slowest_seconds, spent.seconds)
        if (
            spent.worker != worker_name()
        ):  # bytes of this process are counted as a whole, also those of its threads
            more = Traffic(spent.read_bytes, spent.written_bytes)
            self.elsewhere = Traffic(*map(sum, zip(self.elsewhere, more, strict=True)))

    def unit(self, done: Any) -> None:
        """What the receipt of a unit says (a `UnitDone`)."""
        self.skipped += done.skipped
        if done.skipped:
            return
        receipt = done.receipt
        self.rows += receipt.rows
        self.tokens += receipt.tokens
        self.failed_samples += len(receipt.failures)
        self.forward_seconds += receipt.forward_seconds
        self.write_seconds += receipt.write_seconds
        self.wait_seconds += receipt.wait_seconds

    def end(self) -> None:
        """It is over."""
        self.seconds, self.own = self.elapsed, traffic().since(self.before)

    @property
    def elapsed(self) -> float:
        """Seconds since it began, or that it took."""
        return time.perf_counter() - self.begun if self.seconds is None else self.seconds

    @property
    def bytes(self) -> Traffic:
        """Read and written, by all processes."""
        own = self.own or traffic().since(self.before)
        return Traffic(*map(sum, zip(own, self.elsewhere, strict=True)))

    def work(self) -> StepWork:
        """As it is recorded."""
        same = {name: getattr(self, name) for name in StepWork.model_fields if name in vars(self)}
        bytes_ = self.bytes
        own = {"seconds": self.elapsed, "units": self.done}
        return StepWork(**{**same, **own, "read_bytes": bytes_.read, "written_bytes": bytes_.written})


class Account:
    """The steps of a run in order, and who works on them."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.steps: list[Step] = []
        self.stage_failures = 0
        self.finished = False
        self.begun = time.perf_counter()
        self.workers: Callable[[], int] = lambda: 1
        self.most_workers = 0
        self.there_seconds = 0.0
        """Of all workers, idle ones too."""
        self._there = 0
        self._looked: float | None = None

    def measured(self, driver: Driver, workers: Callable[[], int]) -> MeasuredDriver:
        """The driver, each of whose jobs is put down to the step that runs.

        Args:
            driver: runs jobs.
            workers: says how many work for it.
        """
        self.workers = workers

        def on_spent(spent: Spent) -> None:
            if self.steps:
                self.steps[-1].took(spent)
            if self._looked is not None and time.perf_counter() - self._looked > LOOK_SECONDS:
                self.look()

        def on_failed() -> None:
            if self.steps:
                self.steps[-1].failed += 1

        return MeasuredDriver(driver, self.run, on_spent, on_failed)

    def there(self) -> int:
        """Workers that are there; of a scheduler that cannot be reached, as many as at the last look."""
        with suppress(OSError):
            return self.workers()
        return self._there

    def look(self) -> float:
        """Count the workers that are there. The time since the last look is put down to the mean of both counts; the first look begins.

        Returns:
            When it was, by `time.perf_counter`.
        """
        there = self.there()
        now = time.perf_counter()
        if self._looked is not None:
            self.there_seconds += (self._there + there) / 2 * (now - self._looked)
        self._there, self._looked, self.most_workers = there, now, max(self.most_workers, there)
        return now

    def begin(self, label: str, kind: StepKind, total: int, found: int = 0) -> Step:
        """A step begins; the one before has ended. One that is called as an earlier one gets a number."""
        self.look()
        same = sum(step.label.partition(" #")[0] == label for step in self.steps)
        self.steps.append(Step(f"{label} #{same + 1}" if same else label, kind, total, found))
        return self.steps[-1]

    def work(self) -> Sequence[StepWork]:
        """All steps, as they are recorded."""
        return tuple(step.work() for step in self.steps)

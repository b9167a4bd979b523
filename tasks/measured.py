"""What jobs cost where they run: seconds, bytes read and written; told to the log there, and to the process that submits them."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from tasks.drive import Driver
from tasks.fingerprint import worker_name
from tasks.log import begin_log
from tasks.store.events import tell, within
from tasks.store.traffic import traffic

T = TypeVar("T")
R = TypeVar("R")
LOG = logging.getLogger(__name__)


class Spent(NamedTuple):
    """What one job took."""

    worker: str
    """host:pid"""
    seconds: float
    read_bytes: int
    written_bytes: int
    """Of its process meanwhile: where several threads work, of all of them."""


@dataclass(frozen=True)
class Measured:
    """A function whose result comes with what it took."""

    function: Callable[[Any], Any]
    run: str
    """For the log."""

    def __call__(self, item: Any) -> tuple[Any, Spent]:
        """Run it, on a worker."""
        begin_log()
        begun, before = time.perf_counter(), traffic()
        with within(run=self.run):
            result = self.function(item)
            seconds, bytes_ = time.perf_counter() - begun, traffic().since(before)
            job = getattr(self.function, "__name__", type(self.function).__name__)
            tell(
                LOG,
                "job.done",
                logging.DEBUG,
                job=job,
                seconds=seconds,
                read=bytes_.read,
                written=bytes_.written,
            )
        return result, Spent(worker_name(), seconds, *bytes_)


class MeasuredDriver:
    """A driver whose jobs are measured: see `tasks.drive.Driver`."""

    def __init__(
        self, driver: Driver, run: str, on_spent: Callable[[Spent], None], on_failed: Callable[[], None]
    ) -> None:
        self._driver, self._run, self._on_spent, self._on_failed = driver, run, on_spent, on_failed

    def __call__(self, function: Callable[[T], R], items: Sequence[T], on_done: Callable[[R], None]) -> None:
        """Run all items; `on_spent` is called before `on_done`, `on_failed` before an exception is passed on."""

        def finished(answer: Any) -> None:
            result, spent = answer
            self._on_spent(spent)
            on_done(result)

        try:
            job: Callable[[Any], Any] = Measured(function, self._run)
            self._driver(job, items, finished)
        except Exception:
            self._on_failed()
            raise

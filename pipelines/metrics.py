"""Metrics of a run while it works, as Prometheus reads them.

`SUBSPAN_METRICS` says where: the path of a `.prom` file, for node_exporter's textfile collector, or a port, on which `/metrics` is
then answered on loopback. The account of the run is read when somebody asks; units and workers do nothing for it.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.account import BUCKETS, Account, Step
from schemas.errors import SpecError
from tasks.store.events import tell

LOG = logging.getLogger(__name__)
VARIABLE = "SUBSPAN_METRICS"
HOST = "127.0.0.1"
ENDING = ".prom"
"""What the collector of node_exporter reads."""
WRITE_SECONDS = 5.0
"""Between two writes of the file."""
COUNTERS: dict[str, tuple[str, Callable[[Step], float]]] = {
    "units_done": ("Units or jobs that are done", lambda s: s.done),
    "units_found": (
        "Units that an earlier run or another worker had finished",
        lambda s: s.found + s.skipped,
    ),
    "units_failed": ("Times that units or jobs ended a step by raising", lambda s: s.failed),
    "samples_failed": ("Samples without rows", lambda s: s.failed_samples),
    "rows": ("Rows captured", lambda s: s.rows),
    "tokens": ("Real tokens or samples that went through the network", lambda s: s.tokens),
    "shards_read": ("Shards that stages read", lambda s: s.shards_read),
    "read_bytes": ("Bytes read from the store", lambda s: s.bytes.read),
    "written_bytes": ("Bytes written to the store", lambda s: s.bytes.written),
    "forward_seconds": ("Seconds of workers in the network", lambda s: s.forward_seconds),
    "write_seconds": ("Seconds of writers, beside the forwards", lambda s: s.write_seconds),
    "wait_seconds": ("Seconds that forwards waited for writers", lambda s: s.wait_seconds),
}
"""Name without its ending to what it counts, and that of a step."""
LABELS = ("run", "step", "kind")


@contextmanager
def exported(account: Account) -> Iterator[None]:
    """Show the account where SUBSPAN_METRICS says, if it says so, until the run ends.

    Raises:
        SpecError: if it is neither a free port nor a file that can be written.
    """
    target = os.environ.get(VARIABLE, "")
    if not target:
        yield
    elif re.fullmatch(r"\d+", target) and 0 < int(target) < 1 << 16:
        with _served(account, int(target)):
            yield
    elif target.endswith(ENDING):
        with _filed(account, Path(target)):
            yield
    else:
        raise SpecError(
            f"{VARIABLE} is {target!r}; expected a port, 1 to 65535, or a file whose name ends in {ENDING}"
        )


class Collected:
    """A collector of prometheus_client over an account."""

    def __init__(self, account: Account) -> None:
        self.account = account

    def collect(self) -> Iterator[Any]:
        """All metrics, as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        account, steps = self.account, list(self.account.steps)
        for name, (text, value) in COUNTERS.items():
            counter = CounterMetricFamily(f"subspan_{name}", text, labels=LABELS)
            for step in steps:
                counter.add_metric(self._labels(step), value(step))
            yield counter
        planned = GaugeMetricFamily("subspan_units_planned", "Units or jobs known so far", labels=LABELS)
        lasted = GaugeMetricFamily(
            "subspan_step_seconds", "Seconds that a step lasts or lasted", labels=LABELS
        )
        took = HistogramMetricFamily("subspan_unit_seconds", "Seconds of a unit or job", labels=LABELS)
        for step in steps:
            labels = self._labels(step)
            planned.add_metric(labels, step.total)
            lasted.add_metric(labels, step.elapsed)
            took.add_metric(labels, _buckets(step), step.worker_seconds)
        yield from (planned, lasted, took)
        for name, text, number in (
            ("workers", "Workers that are there", account.there()),
            ("stage_failures", "Stages that could not be computed", account.stage_failures),
            ("finished", "1 once the run is over", account.finished),
        ):
            gauge = GaugeMetricFamily(f"subspan_{name}", text, labels=("run",))
            gauge.add_metric((account.run,), number)
            yield gauge

    def _labels(self, step: Step) -> tuple[str, str, str]:
        return self.account.run, step.label, step.kind


def _buckets(step: Step) -> list[tuple[str, float]]:
    """Upper end to how many lie below it."""
    ends, total, found = (*map(str, BUCKETS), "+Inf"), 0, []
    for end, count in zip(ends, step.in_bucket, strict=True):
        total += count
        found.append((end, float(total)))
    return found


def _registry(account: Account) -> Any:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected(account))
    return registry


@contextmanager
def _served(account: Account, port: int) -> Iterator[None]:
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, addr=HOST, registry=_registry(account))
    except (OSError, OverflowError) as error:
        raise SpecError(
            f"{VARIABLE} is {port}, a port that cannot be used ({error}): give a free one, or a file"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _filed(account: Account, path: Path) -> Iterator[None]:
    """The file, replaced in one step every few seconds, and once more at the end."""
    from prometheus_client import write_to_textfile

    registry, over = _registry(account), threading.Event()

    def write() -> None:
        write_to_textfile(str(path), registry)

    def write_again() -> None:
        """A run goes on without its metrics."""
        try:
            write()
        except OSError as error:
            tell(LOG, "metrics.failed", logging.WARNING, path=str(path), reason=str(error))

    def keep_writing() -> None:
        while not over.wait(WRITE_SECONDS):
            write_again()

    try:
        write()
    except OSError as error:
        raise SpecError(
            f"{VARIABLE} is {str(path)!r}, which cannot be written ({error.strerror}): give a file in a folder that exists, or a port"
        ) from error
    writer = threading.Thread(target=keep_writing, name="metrics", daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()
        write_again()

"""What can be seen of a run: its log, its metrics, its account, and its status with everything stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from pipelines.account import Account
from pipelines.metrics import VARIABLE, exported
from pipelines.pace import pace_of
from pipelines.serial import run_serial
from pipelines.status import capture_status, read_run, run_ids
from schemas.errors import SpecError, UnitError
from schemas.execution import Execution
from schemas.outcome import RunOutcome
from tasks.costs import cost_lines, costs_of
from tasks.store.location import Location
from tasks.store.receipts import read_receipts
from tests.pipelines.runs import vectors_run
from tests.pipelines.served import free_port

pytestmark = pytest.mark.alone
TOP = Path(__file__).resolve().parent.parent.parent
STAGES = {"pca": {"method": "spectrum.pca"}}
Samples = dict[tuple[str, str], float]


def command(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")} | extra
    return subprocess.run(
        [sys.executable, "-m", "subspan", *words],
        cwd=TOP, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def samples_of(text: str) -> Samples:
    """(name, kind of step) to value."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "le" not in sample.labels:
                found[sample.name, sample.labels.get("kind", "")] = sample.value
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, Any], str]:
    """A run by two workers with a log, a metrics file and a price, one worker's unit with a sample that fails."""
    folder = tmp_path_factory.mktemp("observed")
    run = vectors_run(folder / "out", stages=STAGES, network={"fragile": True})
    asked = run.model_dump(mode="json")
    asked["execution"]["price_per_worker_hour"] = 3600.0
    (folder / "run.yaml").write_text(yaml.safe_dump(asked))
    done = command(
        "run", str(folder / "run.yaml"), "--json",
        SUBSPAN_LOG=str(folder / "log"), SUBSPAN_METRICS=str(folder / "run.prom"), PREFECT_HOME=str(folder / "prefect"),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "unit.done" not in done.stderr  # events are for the log
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    return folder, lines, json.loads(done.stdout), done.stderr


def test_every_unit_is_told_by_the_worker_that_made_it(ran: Any) -> None:
    folder, lines, outcome, _ = ran
    capture = outcome["captures"][0]["id"]
    receipts = read_receipts(Location(str(folder / "out")), capture)
    done = {line["unit"]: line for line in lines if line["event"] == "unit.done"}
    assert set(done) == set(receipts)
    assert len({line["process"] for line in done.values()}) == 2
    for name, receipt in receipts.items():
        told = done[name]
        assert (told["process"], told["run"], told["capture"]) == (receipt.worker, "vectors", capture)
        assert (told["rows"], told["bytes"], told["seconds"]) == (
            receipt.rows, receipt.written_bytes, receipt.seconds,
        )  # fmt: skip
        assert receipt.forward_seconds + receipt.wait_seconds <= receipt.seconds
    events = Counter(line["event"] for line in lines)
    assert events["unit.begin"] == len(receipts)
    assert events["sample.failed"] == 2
    for once in ("run.begin", "run.done", "capture.begin", "capture.sealed", "lease.taken", "lease.released"):
        assert events[once] == 1, once
    assert events["job.done"] == len(receipts) + sum(
        s["units"] for s in outcome["work"] if s["kind"] == "stages"
    )


def test_the_metrics_file_says_what_the_outcome_says(ran: Any) -> None:
    folder, _, outcome, _ = ran
    found = samples_of((folder / "run.prom").read_text())
    capture, stages = outcome["work"]
    assert (capture["kind"], stages["kind"]) == ("capture", "stages")
    for step in (capture, stages):
        assert found["subspan_units_done_total", step["kind"]] == step["units"]
        assert found["subspan_units_planned", step["kind"]] == step["units"]
        assert found["subspan_unit_seconds_count", step["kind"]] == step["units"]
        assert found["subspan_written_bytes_total", step["kind"]] == step["written_bytes"]
    assert found["subspan_rows_total", "capture"] == capture["rows"] == 100
    assert found["subspan_samples_failed_total", "capture"] == 2
    assert found["subspan_shards_read_total", "stages"] == outcome["shards_read"] > 0
    assert (found["subspan_finished", ""], found["subspan_workers", ""]) == (1, 2)


def test_the_bytes_are_those_on_disk(ran: Any) -> None:
    folder, _, outcome, _ = ran
    capture = outcome["captures"][0]["id"]
    size = sum(r.written_bytes for r in read_receipts(Location(str(folder / "out")), capture).values())
    written = outcome["work"][0]["written_bytes"]
    everything = sum(p.stat().st_size for p in (folder / "out" / "captures").rglob("*") if p.is_file())
    assert size <= written
    assert everything <= written <= 3 * everything  # beats of the lease, metadata that are written again
    artifact = outcome["artifacts"][0]
    place = folder / "out" / "artifacts" / artifact["id"] / "arrays.zarr"
    assert artifact["bytes"] == sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) > 0


def test_the_run_ends_with_what_it_cost(ran: Any) -> None:
    folder, _, _, stderr = ran
    root = Location(str(folder / "out"))
    outcome = read_run(root, run_ids(root)[0]).outcome
    costs = costs_of(outcome)
    assert costs is not None
    assert (outcome.workers, outcome.device) == (2, "cpu")
    assert costs.worker_hours == pytest.approx(2 * outcome.seconds / 3600)
    assert costs.price == pytest.approx(2 * outcome.seconds)  # 3600 an hour are 1 a second
    assert costs.busy is not None
    assert 0 < costs.busy <= 1
    assert costs.computing is not None
    assert 0 < costs.computing < 1
    assert any("2 CPU workers" in line and "at 3600 per hour" in line for line in cost_lines(outcome))
    assert "/info/main/workers.html" in stderr or "/status" in stderr  # the scheduler's page, while it works


def test_workers_that_come_and_go_are_paid_for_while_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 for ten seconds, 3 for twenty, and 5 at a look between units; then the scheduler is gone. A count stands until the next one."""
    now = [100.0]
    monkeypatch.setattr("pipelines.account.time", SimpleNamespace(perf_counter=lambda: now[0]))
    counts = iter([1, 1, 3, 3, 5, OSError("gone")])

    def workers() -> int:
        if isinstance(count := next(counts), OSError):
            raise count
        return count

    def driver(function: Callable[[int], int], items: Sequence[int], on_done: Callable[[int], None]) -> None:
        for item in items:
            on_done(function(item))

    account = Account("run")
    measured = account.measured(driver, workers)
    for later in (50, 10, 0, 20):  # what comes before the first look is not of the run
        now[0] += later
        account.look()
    now[0] += 4
    measured(abs, [1], lambda _: None)  # too soon for another look
    now[0] += 4
    measured(abs, [1], lambda _: None)
    now[0] += 2
    account.look()
    assert account.there_seconds == 1 * 10 + 3 * 20 + (3 + 5) / 2 * 8 + 5 * 2
    assert account.most_workers == 5


def test_a_run_that_is_stopped_has_an_end_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(running: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.execute._Running.stages", stopped)
    with caplog.at_level("INFO", "pipelines.execute"), pytest.raises(KeyboardInterrupt):
        run_serial(vectors_run(tmp_path, n=20))
    assert "run.failed" in caplog.records[-1].getMessage()
    assert "KeyboardInterrupt" in caplog.text


def test_metrics_outlive_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last count of workers stands, and what ended the run is told, not that they cannot be counted."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "run.prom"))
    account = Account("run")
    account.workers = lambda: 3
    account.look()

    def gone() -> int:
        raise ConnectionError("gone")

    with pytest.raises(ValueError, match="of the run"), exported(account):  # noqa: PT012
        account.workers = gone
        raise ValueError("of the run")
    assert 'subspan_workers{run="run"} 3.0' in (tmp_path / "run.prom").read_text()


def test_records_of_older_versions_have_no_costs() -> None:
    old = RunOutcome.model_validate({"run": "r", "root": "/x", "seconds": 3.0})
    assert costs_of(old) is None
    assert cost_lines(old) == []


def test_a_metrics_port_answers_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, found = free_port(), []
    monkeypatch.setenv(VARIABLE, str(port))
    half, go_on = threading.Event(), threading.Event()

    class Waiting:
        """Stops after three units, until it was scraped."""

        n = 0

        def advance(self, label: str, tokens: int = 0) -> None:
            self.n += 1
            if self.n == 3:
                half.set()
                assert go_on.wait(60)

        def begin(self, label: str, total: int, done: int = 0) -> None: ...
        def at(self, label: str, done: int, total: int) -> None: ...
        def end(self, label: str) -> None: ...
        def link(self, text: str, url: str) -> None: ...

    def scrape() -> None:
        assert half.wait(60)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                found.append(samples_of(answer.read().decode()))
        finally:
            go_on.set()

    reader = threading.Thread(target=scrape)
    reader.start()
    outcome = run_serial(vectors_run(tmp_path), Waiting())
    reader.join()
    (seen,) = found
    assert seen["subspan_units_done_total", "capture"] == 3
    assert seen["subspan_units_planned", "capture"] == outcome.work[0].units == 7
    assert seen["subspan_tokens_total", "capture"] == 48
    assert seen["subspan_finished", ""] == 0
    assert not [
        c
        for c in psutil.Process().net_connections()
        if c.laddr and c.laddr.port == port and c.status == "LISTEN"
    ]


@pytest.mark.parametrize("price", [-1.0, float("inf"), float("nan")])
def test_a_price_is_a_number(price: float) -> None:
    with pytest.raises(ValidationError, match="price_per_worker_hour"):
        Execution(price_per_worker_hour=price)


def test_a_run_outlives_its_file_of_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder / "run.prom"))
    monkeypatch.setattr("pipelines.metrics.WRITE_SECONDS", 0.01)
    with exported(Account("run")):
        shutil.rmtree(folder)
        time.sleep(0.1)
        folder.mkdir()
    assert samples_of((folder / "run.prom").read_text())
    with exported(Account("run")):
        shutil.rmtree(folder)


@pytest.mark.parametrize("target", ["nowhere/run.prom", "99999", "0", "-1", "9400x", "-"])
def test_metrics_that_cannot_be_shown_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, target)
    with pytest.raises(SpecError, match=f"SUBSPAN_METRICS is .*{target}"):
        run_serial(vectors_run(tmp_path / "out"))


def test_a_unit_that_fails_is_told_where_it_ran_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no memory today")

    monkeypatch.setattr("tasks.unit.open_source", broken)
    caplog.set_level("DEBUG")
    with pytest.raises(UnitError, match="no memory today"):
        run_serial(vectors_run(tmp_path))
    told = {r.event: r.facts for r in caplog.records if hasattr(r, "event")}
    assert (told["unit.failed"]["unit"], told["unit.failed"]["run"]) == ("sample-000000", "vectors")
    assert "no memory today" in told["unit.failed"]["reason"]
    assert "no memory today" in told["run.failed"]["reason"]
    assert "unit.done" not in told
    assert "lease.released" in told


BLOCKED = "import sys\nfor name in ('prefect', 'distributed', 'dask', 'torch', 'prometheus_client'): sys.modules[name] = None\n"


def stopped_status(root: Path) -> dict[str, Any]:
    """`subspan status --json` in a process that has neither Prefect nor Dask."""
    code = f"{BLOCKED}from pipelines.cli import main\nsys.exit(main(['status', '--root', {str(root)!r}, '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert not answer["damaged"]
    return dict(answer)


def test_status_with_everything_stopped(tmp_path: Path) -> None:
    """After a kill in the middle of a unit: units done, rates and what is left, from files alone; no server, no workers."""
    root = tmp_path / "out"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(vectors_run(root, network={"pause": 0.2}).model_dump(mode="json")))
    words = [sys.executable, "-m", "subspan", "run", str(file), "--serial", "--json"]
    running = subprocess.Popen(words, cwd=TOP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while running.poll() is None and len(list(root.glob("captures/*.receipts/*-*.json"))) < 3:
            time.sleep(0.01)
        running.send_signal(signal.SIGSTOP)  # wherever it is: in a forward, in a write
        mid = stopped_status(root)["captures"][0]
    finally:
        running.kill()
        running.wait()
    assert not mid["sealed"]
    found = stopped_status(root)["captures"][0]
    receipts = read_receipts(Location(str(root)), found["id"])
    assert 3 <= mid["units_done"] == found["units_done"] == len(receipts) < found["units"] == 7
    assert mid["holder"].startswith(f"process {running.pid} ")
    pace = found["pace"]
    assert pace["tokens_per_second"] == pytest.approx(
        sum(r.tokens for r in receipts.values()) / sum(r.seconds for r in receipts.values())
    )
    slowest = max(receipts.values(), key=lambda r: r.seconds)
    assert (pace["slowest_unit"], pace["slowest_worker"], pace["workers"]) == (
        slowest.unit.name,
        slowest.worker,
        1,
    )
    assert 0 < pace["forward"] <= 1
    told = command("status", "--root", str(root))
    assert f"{slowest.unit.name} {slowest.seconds:.1f} s" in told.stdout


def test_pace_of_known_receipts(tmp_path: Path) -> None:
    outcome = run_serial(vectors_run(tmp_path))
    root = Location(str(tmp_path))
    first = next(iter(read_receipts(root, outcome.captures[0].id).values()))
    made = [
        first.model_copy(update={
            "seconds": s, "forward_seconds": s / 2, "write_seconds": s / 4, "wait_seconds": s / 8, "tokens": 30, "padded_tokens": 40,
            "worker": f"host:{n % 2}", "finished": f"2026-01-01T00:00:{4 * n:02d}+00:00",
        })
        for n, s in enumerate((1.0, 2.0, 5.0))
    ]  # fmt: skip
    pace = pace_of(made)
    assert pace is not None
    assert (pace.forward, pace.write, pace.wait) == (0.5, 0.25, 0.125)
    assert (pace.unit_seconds, pace.slowest_seconds, pace.workers) == (8 / 3, 5.0, 2)
    assert (pace.tokens_per_second, pace.padding) == (90 / 8, 0.25)
    assert pace.units_per_second == 2 / 8
    assert pace_of(made[:1]).units_per_second is None
    assert pace_of([]) is None
    assert capture_status(root, outcome.captures[0].id).pace is not None

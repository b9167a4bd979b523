"""Real Dask workers, real kills: the store's bytes are those of an undisturbed run."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from pipelines.cluster import DaskDriver, open_client, resolve_device
from pipelines.execute import execute
from pipelines.plan import make_plan
from pipelines.progress import Quiet
from pipelines.serial import PlainSteps, run_serial
from schemas.errors import FingerprintError, ResourceError, StoreError, UnitError
from schemas.execution import Execution
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from subspan import open_capture
from tests.pipelines.runs import store_bytes, vectors_run

STAGES = {"pca": {"method": "spectrum.pca"}}


def run_on_workers(run: RunSpec) -> RunOutcome:
    plan = make_plan(run)
    with open_client(run.execution, 1, "cpu", plan.memory_bytes) as client:
        return execute(plan, DaskDriver(client, run.execution.window), "cpu", PlainSteps(), Quiet())


def with_execution(run: RunSpec, **changes: object) -> RunSpec:
    return run.model_copy(update={"execution": run.execution.model_copy(update=changes)})


def test_workers_write_what_one_process_writes(tmp_path: Path) -> None:
    serial = run_serial(vectors_run(tmp_path / "serial", stages=STAGES))
    workers = run_on_workers(vectors_run(tmp_path / "workers", stages=STAGES))
    capture = serial.captures[0].id
    assert workers.captures[0].id == capture
    assert store_bytes(tmp_path / "serial", capture) == store_bytes(tmp_path / "workers", capture)
    for one, two in zip(serial.artifacts, workers.artifacts, strict=True):
        assert one.result == two.result


def test_1999_samples_on_two_workers_are_there_once_each(tmp_path: Path) -> None:
    run = vectors_run(
        tmp_path, n=1999, store={"shard_rows": 256, "chunk_rows": 64}, batch_samples=32, sites=["last"]
    )
    capture = open_capture(tmp_path, run_on_workers(run).captures[0].id)
    rows = capture.site("last")
    assert rows["sample"].values.tolist() == list(range(1999))


@pytest.mark.slow
def test_workers_killed_at_random_change_no_byte(tmp_path: Path) -> None:
    """Ten kills of a worker in the middle of captures; every unit is there once, with the bytes of a quiet run."""
    quiet = run_serial(vectors_run(tmp_path / "quiet", n=400, network={"pause": 0.02}))
    capture = quiet.captures[0].id
    expected = store_bytes(tmp_path / "quiet", capture)
    kills = 0
    for round_ in range(5):
        root = tmp_path / f"round{round_}"
        run = with_execution(vectors_run(root, n=400, network={"pause": 0.02}), retries=10)
        plan = make_plan(run)
        with open_client(run.execution, 1, "cpu", plan.memory_bytes) as client:
            killer = _Killer(client, seed=round_, most=2)
            with killer:
                execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), Quiet())
            kills += killer.kills
        assert store_bytes(root, capture) == expected
    assert kills == 10


class _Killer:
    """Kills workers of a client at seeded random instants, until it has killed `most`."""

    def __init__(self, client: Client, seed: int, most: int) -> None:
        import random

        self._client, self._random, self._most = client, random.Random(seed), most
        self._pids = client.run(os.getpid)
        self.kills = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pids = list(self._pids.values())
        while self.kills < self._most and pids and not self._stop.wait(self._random.uniform(0.8, 2.0)):
            os.kill(pids.pop(), signal.SIGKILL)
            self.kills += 1


def test_a_network_that_kills_its_workers_is_named(tmp_path: Path) -> None:
    run = vectors_run(
        tmp_path, n=32, model={"kind": "factory", "factory": "tests.factories:killer"}, sites=["first"]
    )
    with pytest.raises(UnitError, match=r"killed its worker 1 times.*memory"):
        run_on_workers(with_execution(run, retries=0))


def test_a_worker_with_too_little_memory_is_refused_with_both_numbers(tmp_path: Path) -> None:
    run = with_execution(vectors_run(tmp_path), worker_memory_bytes=100 << 20)
    with pytest.raises(ResourceError, match=r"needs about \d+ MiB, a worker has 100 MiB"):
        run_on_workers(run)
    assert not (tmp_path / "captures").exists()


def test_an_absent_scheduler_is_refused() -> None:
    with (
        pytest.raises(StoreError, match="address is empty"),
        open_client(Execution(cluster="address"), 1, "cpu"),
    ):
        pass


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster._gpu_count", lambda: 0)
    with pytest.raises(ResourceError, match="no CUDA device"):
        resolve_device(Execution(device="cuda"))
    assert resolve_device(Execution()) == "cpu"


def test_an_existing_scheduler_is_used(tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        run = with_execution(
            vectors_run(tmp_path, n=40), cluster="address", address=cluster.scheduler_address
        )
        assert run_on_workers(run).captures[0].rows == {"sample": 40}


def test_a_driver_raises_what_the_function_raised_and_goes_on_being_usable() -> None:
    execution = Execution(cluster="processes", workers=1)
    with open_client(execution, 1, "cpu") as client:
        driver, seen = DaskDriver(client, window=2), []
        with pytest.raises(ZeroDivisionError):
            driver(_invert, [1, 2, 0, 4, 5], seen.append)
        driver(_invert, [4], seen.append)
        assert seen[-1] == 0.25


def _invert(x: int) -> float:
    return 1 / x


def test_a_slow_consumer_keeps_the_window_bounded() -> None:
    execution = Execution(cluster="processes", workers=1)
    with open_client(execution, 1, "cpu") as client:
        highest = 0

        def watch(_: float) -> None:
            nonlocal highest
            highest = max(highest, len(client.futures))
            time.sleep(0.005)

        DaskDriver(client, window=3)(_invert, list(range(1, 30)), watch)
        assert highest <= 4


def test_receipts_of_different_threads_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = vectors_run(tmp_path, n=64)
    monkeypatch.setattr("tasks.fingerprint.package_versions", lambda: {"torch": "another"})
    with pytest.raises(StopHere):
        _interrupted(run, after=2)
    monkeypatch.undo()
    with pytest.raises(FingerprintError, match="mix_fingerprints"):
        run_serial(run)
    assert run_serial(with_execution(run, mix_fingerprints=True)).captures[0].rows == {"sample": 64}


class StopHere(Exception):
    """Ends a run between two units."""


def _interrupted(run: RunSpec, after: int) -> None:
    from tasks.drive import serial

    def driver(function, items, on_done):
        def stop_after(done):
            on_done(done)
            nonlocal after
            after -= 1
            if after == 0:
                raise StopHere

        serial(function, items, stop_after)

    execute(make_plan(run), driver, "cpu", PlainSteps(), Quiet())


def test_an_interrupted_run_does_only_what_is_missing(tmp_path: Path) -> None:
    quiet = run_serial(vectors_run(tmp_path / "quiet"))
    run = vectors_run(tmp_path / "again")
    with pytest.raises(StopHere):
        _interrupted(run, after=3)
    done = {
        p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "again").rglob("c/*") if p.is_file()
    }
    assert done
    outcome = run_serial(run)
    n_units = make_plan(run).captures[0].n_units
    assert outcome.forwards <= (n_units - 3) * 5  # 4 batches in a unit of 16 samples, one probe in the first
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in done} == done
    capture = quiet.captures[0].id
    assert store_bytes(tmp_path / "quiet", capture) == store_bytes(tmp_path / "again", capture)

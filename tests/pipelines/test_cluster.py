"""Real Dask workers, real kills: the store's bytes are those of an undisturbed run."""

import functools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch
from distributed import Client, LocalCluster
from pydantic import ValidationError

from pipelines.cluster import DaskDriver, open_client
from pipelines.devices import resolve_device
from pipelines.execute import execute
from pipelines.plan import Plan, make_plan
from pipelines.progress import Quiet
from pipelines.serial import PlainSteps, run_serial
from pipelines.worker_checks import check_threads, shared_device
from pipelines.workers_here import _gpu_cluster, worker_environment
from schemas.capture import CaptureSpec
from schemas.errors import FingerprintError, ResourceError, UnitError
from schemas.execution import Execution
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from subspan import open_capture
from tasks.drive import Driver
from tasks.store.paths import all_units, receipts_path
from tasks.unit import run_unit
from tests.factories import squares, vectors
from tests.pipelines.runs import UnitLog, artifact_bytes, finished, half_done, store_bytes, vectors_run
from tests.pipelines.served import wait_until

pytestmark = pytest.mark.alone
STAGES = {"pca": {"method": "spectrum.pca"}}


def run_on_workers(run: RunSpec) -> RunOutcome:
    plan = make_plan(run)
    with open_client(run.execution, 1, "cpu", plan.memory_bytes) as client:
        return execute(plan, DaskDriver(client, run.execution.window), "cpu", PlainSteps(), Quiet())


def with_execution(run: RunSpec, **changes: object) -> RunSpec:
    return run.model_copy(update={"execution": run.execution.model_copy(update=changes)})


Ran = Callable[[int], tuple[Path, RunOutcome]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The root and outcome of one run by so many workers, each made once; 0 is this process alone."""

    @functools.cache
    def run(workers: int) -> tuple[Path, RunOutcome]:
        root = tmp_path_factory.mktemp(f"workers{workers}")
        store = {"shard_rows": 64, "chunk_rows": 32}
        asked = vectors_run(root, n=1999, store=store, batch_samples=32, stages=STAGES)
        if workers == 0:
            return root, run_serial(asked)
        return root, run_on_workers(with_execution(asked, workers=workers))

    return run


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_what_one_process_writes(ran: Ran, workers: int) -> None:
    (here, serial), (there, made) = ran(0), ran(workers)
    capture = serial.captures[0].id
    assert made.captures[0].id == capture
    assert store_bytes(here, capture) == store_bytes(there, capture)
    assert len(serial.artifacts) == 3
    for one, two in zip(serial.artifacts, made.artifacts, strict=True):
        assert (one.id, one.result) == (two.id, two.result)
        arrays = artifact_bytes(here, one.id)
        assert any("/c/" in path for path in arrays)
        assert artifact_bytes(there, one.id) == arrays


@pytest.mark.parametrize("workers", [1, 2])
def test_1999_samples_are_there_once_each(ran: Ran, workers: int) -> None:
    root, outcome = ran(workers)
    rows = open_capture(root, outcome.captures[0].id).site("first")
    assert rows["sample"].values.tolist() == list(range(1999))
    assert rows["key"].values.tolist() == [str(n) for n in range(1999)]
    with torch.inference_mode():
        expected = squares().first(vectors(1999).values)
    # Values reach 700, and two samples differ by 0.4 at least.
    np.testing.assert_allclose(rows["activation"].values, expected.numpy(), rtol=0, atol=0.01)


KILLS = 10
MOST_CAPTURES = 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_workers_killed_at_random_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kills, each of a worker in the middle of a unit: only these units are done again, and no byte differs.

    A unit has two shards and sleeps 8 x 0.04 seconds in its forwards, a capture thirty times as long.
    """
    slow: dict[str, Any] = {"n": 960, "network": {"pause": 0.04}, "store": SHORT_SHARDS | {"unit_shards": 2}}
    with monkeypatch.context() as patch:
        patch.setattr("tests.factories.time", SimpleNamespace(sleep=lambda _: None))
        capture = run_serial(vectors_run(tmp_path / "quiet", **slow)).captures[0].id
    expected = store_bytes(tmp_path / "quiet", capture)
    kills: list[_Kill] = []
    captures = 0
    while len(kills) < KILLS and captures < MOST_CAPTURES:
        root = tmp_path / f"round{captures}"
        run = with_execution(vectors_run(root, **slow), retries=KILLS)
        plan = make_plan(run)
        log = UnitLog(str(tmp_path / f"round{captures}.log"))
        killer = _Killer(root, plan.captures[0].spec, log, seed=captures)
        with open_client(run.execution, 1, "cpu", plan.memory_bytes) as client:
            now = killer.during(client, _logged(DaskDriver(client, 2), log), plan, KILLS - len(kills))
        assert store_bytes(root, capture) == expected
        end = finished(root, plan.captures[0].spec)
        for kill in now:
            assert {path: end[path] for path in kill.finished} == kill.finished, (
                "something finished was touched"
            )
        hits = Counter(kill.unit for kill in now)
        assert log.produced() == {u.name: 1 + hits[u.name] for u in all_units(plan.captures[0].spec)}
        kills += now
        captures += 1
    assert len(kills) == KILLS
    assert sum(kill.half_done for kill in kills) >= KILLS // 2


SHORT_SHARDS = {"shard_rows": 16, "chunk_rows": 8}


def _logged(driver: DaskDriver, log: UnitLog) -> Driver:
    """The driver, with units that note when they begin and end."""

    def run(function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[Any], None]) -> None:
        assert function is run_unit
        driver(log, items, on_done)

    return run


class _Kill(NamedTuple):
    """A worker was killed while it was at work on a unit."""

    unit: str
    half_done: bool
    """Whether shards of the unit lay there already."""
    finished: dict[str, tuple[int, int]]
    """The shards of units with a receipt, at that moment."""


class _Killer:
    """Kills workers at seeded random instants, each time after at least one more unit was finished."""

    def __init__(self, root: Path, spec: CaptureSpec, log: UnitLog, seed: int) -> None:
        self._root, self._spec, self._log = root, spec, log
        self._random = random.Random(seed)
        self._over = threading.Event()

    def during(self, client: Client, driver: Driver, plan: Plan, most: int) -> list[_Kill]:
        """Execute a plan and kill meanwhile; every second victim has written a part of its unit."""
        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(self._kills, client, most)
            try:
                execute(plan, driver, "cpu", PlainSteps(), Quiet())
            finally:
                self._over.set()
            return killed.result()

    def _kills(self, client: Client, most: int) -> list[_Kill]:
        kills: list[_Kill] = []
        receipts = self._root / receipts_path(self._spec.id)
        while len(kills) < most and not self._over.is_set():
            before = len(list(receipts.glob("sample-*")))
            while len(list(receipts.glob("sample-*"))) == before and not self._over.wait(0.01):
                pass
            self._over.wait(self._random.uniform(0.0, 0.3))
            kill = None
            while kill is None and not self._over.wait(0.005):
                kill = self._strike(client, needs_shards=len(kills) % 2 == 0)
            kills += [kill] if kill is not None else []
        return kills

    def _strike(self, client: Client, needs_shards: bool) -> _Kill | None:
        """Stop a worker, see that it is in the middle of a unit, and kill it; else let it go on."""
        current = {nanny.pid for nanny in client.cluster.workers.values()} & set(self._log.open_units())
        if not current:
            return None
        victim = self._random.choice(sorted(current))
        with suppress(psutil.NoSuchProcess), _stopped(psutil.Process(victim)) as process:
            unit, done = self._log.open_units().get(victim), finished(self._root, self._spec)
            begun = unit in half_done(self._root, self._spec)
            under_way = unit is not None and not self._has_receipt(unit)
            if under_way and (begun or not needs_shards):
                process.kill()
                return _Kill(str(unit), begun, done)
        return None

    def _has_receipt(self, unit: str) -> bool:
        return (self._root / receipts_path(self._spec.id) / f"{unit}.json").exists()


@contextmanager
def _stopped(process: psutil.Process) -> Iterator[psutil.Process]:
    """A process that stands still, and goes on afterwards if it was not killed."""
    process.suspend()
    try:
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        yield process
    finally:
        process.resume()


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


def test_an_address_and_its_cluster_come_together() -> None:
    with pytest.raises(ValidationError, match="address is empty"):
        Execution(cluster="address")
    with pytest.raises(
        ValidationError, match=r"tcp://s and execution.cluster is auto.*set cluster to address"
    ):
        Execution(address="tcp://s")
    assert Execution(cluster="threads", address="tcp://s").address == "tcp://s"  # --set execution.cluster=...


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.devices.gpu_count", lambda: 0)
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


def test_a_scheduler_that_goes_away_is_said() -> None:
    """Of a cluster that others made; what Dask raises is no error of ours, and speaks of connections alone."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        execution = Execution(cluster="address", address=cluster.scheduler_address)
        with open_client(execution, 1, "cpu") as client:
            closing = threading.Timer(2, cluster.close)
            closing.start()
            with pytest.raises(ResourceError, match=r"scheduler gave a unit up .*finished units are kept"):
                DaskDriver(client, window=2)(time.sleep, [0.5] * 40, lambda _: None)
            closing.join()


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


@pytest.mark.slow
def test_a_worker_that_is_long_in_coming_back_is_waited_for() -> None:
    """Dask by itself ends a worker for good that is not there 15 seconds after it died."""
    with open_client(Execution(cluster="processes", workers=1), 1, "cpu") as client:
        [nanny] = client.cluster.workers.values()
        died, first = time.monotonic(), nanny.pid
        psutil.Process(first).kill()
        while nanny.pid in (first, None):
            time.sleep(0.01)
        with _stopped(psutil.Process(nanny.pid)):
            time.sleep(died + 17 - time.monotonic())
        seen: list[float] = []
        DaskDriver(client)(_invert, [4], seen.append)
        assert seen == [0.25]


@pytest.mark.parametrize("own", [True, False])
def test_work_without_workers_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """Also at a scheduler that others run, which waits for ever."""
    monkeypatch.setattr("pipelines.cluster.BACK_SECONDS", 1)
    monkeypatch.setattr("pipelines.cluster.LOOK_SECONDS", 0.2)
    with ExitStack() as stack:
        execution = Execution(cluster="processes", workers=1)
        if not own:
            cluster = stack.enter_context(LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1"))
            execution = Execution(cluster="address", address=cluster.scheduler_address)
        client = stack.enter_context(open_client(execution, 1, "cpu"))
        (client.cluster if own else cluster).scale(0)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.01)
        with pytest.raises(ResourceError, match="none came back for 1 seconds"):
            DaskDriver(client)(_invert, [4], print)


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


class _Workers:
    """A client of workers that are somewhere else."""

    def __init__(self, threads: tuple[int, ...] = (1, 1), gpus: tuple[int, ...] = (0, 0)) -> None:
        self.threads, self.gpus = threads, gpus

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {f"tcp://w{i}": {"nthreads": n} for i, n in enumerate(self.threads)}}

    def run(self, _: object) -> dict[str, int]:
        return {f"tcp://w{i}": n for i, n in enumerate(self.gpus)}


def test_workers_with_several_threads_are_refused() -> None:
    check_threads(_Workers((1, 1)))
    workers = _Workers((1, 4))
    with pytest.raises(ResourceError, match=r"tcp://w1 has 4 Dask threads \(1 of 2 .*--nthreads 1"):
        check_threads(workers)


@pytest.mark.parametrize(
    ("gpus", "asked", "found"),
    [((1, 2), "auto", "cuda"), ((0, 0), "auto", "cpu"), ((1, 1), "cpu", "cpu"), ((1, 1), "cuda", "cuda")],
)
def test_a_cluster_elsewhere_computes_on_what_its_workers_have(
    gpus: tuple[int, ...], asked: str, found: str
) -> None:
    execution = Execution.model_validate({"cluster": "address", "address": "tcp://s", "device": asked})
    assert shared_device(_Workers(gpus=gpus), execution) == found


@pytest.mark.parametrize(("gpus", "asked"), [((1, 0), "auto"), ((0, 0), "cuda")])
def test_workers_without_the_asked_gpu_are_named(gpus: tuple[int, ...], asked: str) -> None:
    execution = Execution.model_validate({"cluster": "address", "address": "tcp://s", "device": asked})
    with pytest.raises(ResourceError, match=r"of 2 workers at tcp://s see no CUDA device, such as tcp://w"):
        shared_device(_Workers(gpus=gpus), execution)


def test_a_refusal_takes_no_finished_receipt_and_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of receipts, made while mixing was allowed: each refusal names one, and without it the run goes on."""
    run = vectors_run(tmp_path, n=64)
    monkeypatch.setattr("tasks.fingerprint.package_versions", lambda: {"torch": "another"})
    with pytest.raises(StopHere):
        _interrupted(run, after=1)
    monkeypatch.undo()
    with pytest.raises(StopHere):
        _interrupted(with_execution(run, mix_fingerprints=True), after=1)
    receipts = set(tmp_path.rglob("*.receipts/sample-*.json"))
    with pytest.raises(FingerprintError) as refused:
        run_serial(run)
    assert set(tmp_path.rglob("*.receipts/sample-*.json")) == receipts
    for receipt in receipts:  # those of the other kind, which is the first here
        if str(receipt) not in str(refused.value):
            receipt.unlink()
    assert run_serial(run).captures[0].rows == {"sample": 64}


@pytest.mark.parametrize(("address", "why"), [("udp://host:1", "unknown address"), ("tls://host:1", "TLS")])
def test_an_address_that_dask_cannot_use_is_said(address: str, why: str) -> None:
    execution = Execution(cluster="address", address=address)
    with (
        pytest.raises(ResourceError, match=rf"execution.address is {address}, .*{why}.*give tcp://host:8786"),
        open_client(execution, 1, "cpu"),
    ):
        pass


def test_a_scheduler_that_is_gone_has_no_number_of_workers() -> None:
    """Dask says nothing of workers then; a count of none would be a number."""

    class Gone:
        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            return {"type": "Scheduler"}

    with pytest.raises(OSError, match="scheduler does not answer"):
        DaskDriver(Gone()).n_workers()


def test_a_worker_of_a_gpu_comes_back_with_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has no GPU here: the variable that names it is what counts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    without = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr("pipelines.workers_here.importlib", without)  # no dask-cuda

    def gpus(client: Client) -> set[str]:
        return set(
            client.run(os.getenv, "CUDA_VISIBLE_DEVICES", on_error="ignore").values()
        )  # one may be leaving

    with _gpu_cluster(2, worker_environment(1)) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        cluster.scale(1)
        wait_until(lambda: len(gpus(client)) == 1, 60)
        cluster.scale(2)
        wait_until(lambda: gpus(client) == {"4", "7"}, 60)

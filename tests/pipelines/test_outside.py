"""Workers that others started: of other versions, late, coming and going; and schedulers that die."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, LocalCluster

from pipelines.cluster import DaskDriver, open_client
from pipelines.execute import execute
from pipelines.plan import make_plan
from pipelines.progress import Quiet
from pipelines.serial import PlainSteps, run_serial
from pipelines.worker_checks import check_versions
from schemas.errors import FingerprintError, ResourceError
from schemas.execution import Execution
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from tasks.store.paths import receipts_path
from tasks.versions import own_versions, run_checked
from tests.pipelines.outside import process, scheduler, wait_for_workers, wait_until, worker_command
from tests.pipelines.runs import store_bytes, vectors_run

pytestmark = pytest.mark.alone
SLOW: dict[str, Any] = {"n": 320, "network": {"pause": 0.05}}
"""Twenty units of 0.2 seconds."""
MORE: dict[str, Any] = {"n": 1600, "network": {"pause": 0.05}}
"""A hundred of them: longer than it takes workers to come, though all that is in flight at once takes less than a second."""


def quiet(
    root: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any] = SLOW
) -> tuple[str, dict[str, bytes]]:
    """The capture of an undisturbed run and its bytes."""
    with monkeypatch.context() as patch:
        patch.setattr("tests.factories.time", SimpleNamespace(sleep=lambda _: None))
        capture = run_serial(vectors_run(root, **data)).captures[0].id
    return capture, store_bytes(root, capture)


class Events(Quiet):
    """Calls something when so many units are done."""

    def __init__(self, *at: tuple[int, Any]) -> None:
        self.done, self.at = 0, dict(at)

    def advance(self, label: str, tokens: int) -> None:
        self.done += 1
        self.at.get(self.done, lambda: None)()
        self.at.get(0, lambda: None)()


def run_with(run: RunSpec, events: Quiet) -> RunOutcome:
    plan = make_plan(run)
    with open_client(run.execution, 1, "cpu", plan.memory_bytes) as client:
        return execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), events)


def at(run: RunSpec, address: str) -> RunSpec:
    execution = Execution(cluster="address", address=address, device="cpu")
    return run.model_copy(update={"execution": execution})


def pretend(versions: dict[str, str]) -> None:
    """Let this worker have other versions."""
    import importlib.metadata
    import platform

    import distributed.versions

    import tasks.versions

    real = importlib.metadata.version
    importlib.metadata.version = lambda name: versions.get(name) or real(name)
    distributed.versions.version = importlib.metadata.version
    distributed.versions._version_cached.cache_clear()
    if "python" in versions:
        platform.python_version_tuple = lambda: tuple(versions["python"].split("."))
    if "code of subspan" in versions:
        tasks.versions.code_digest = lambda: versions["code of subspan"]
    tasks.versions.own_versions.cache_clear()


@pytest.fixture
def workers() -> Iterator[tuple[str, Client]]:
    """An address with two workers, and somebody's client."""
    with (
        LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster.scheduler_address, client


def test_workers_of_other_versions_are_refused_with_both(workers: tuple[str, Client]) -> None:
    address, client = workers
    execution = Execution(cluster="address", address=address)
    with open_client(execution, 1, "cpu"):
        pass
    second = sorted(client.scheduler_info(n_workers=-1)["workers"])[1]
    ours = own_versions()
    for name in ("torch", "zarr", "numpy", "subspan", "distributed", "python", "code of subspan"):
        client.run(pretend, {name: "9.9"}, workers=[second])
        says = rf"worker {second} has {name} 9.9 \(here {ours[name]}\) \(1 of 2 workers differ\): give workers the environment"
        with pytest.raises(FingerprintError, match=says), open_client(execution, 1, "cpu"):
            pass
        client.run(pretend, {name: ours[name]}, workers=[second])
    client.run(pretend, {"torch": "9.9", "dask": "9.9"}, workers=[second])
    with pytest.raises(FingerprintError) as refused:
        check_versions(client, mix=True)
    assert "dask 9.9" in str(refused.value)
    assert "torch" not in str(refused.value)
    client.run(pretend, {"dask": ours["dask"]}, workers=[second])
    assert client.run(own_versions)[second]["torch"] == "9.9"
    check_versions(client, mix=True)


@pytest.mark.filterwarnings("default:Mismatched versions")
def test_dask_itself_only_warns(workers: tuple[str, Client]) -> None:
    """Why versions are compared here."""
    _, client = workers
    client.run(pretend, {"numpy": "9.9"})
    with pytest.warns(UserWarning, match=r"(?s)Mismatched versions found.*numpy.*9\.9"):
        client.get_versions(check=True, packages=["torch", "zarr"])


def hide() -> None:
    """Let this worker have no subspan: what is loaded already is forgotten."""
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "tasks"]:
        del sys.modules[name]
    sys.modules["tasks"] = None


def test_workers_without_this_code_are_said(workers: tuple[str, Client]) -> None:
    _, client = workers
    first = sorted(client.scheduler_info(n_workers=-1)["workers"])[0]
    client.run(hide, workers=[first])
    with pytest.raises(
        FingerprintError, match=rf"worker {first} has no code of this subspan .*1 of 2 workers differ"
    ):
        check_versions(client, mix=False)


def test_a_job_looks_at_its_worker_first() -> None:
    ran: list[int] = []
    with pytest.raises(
        FingerprintError, match=r"worker \S+:\d+ has torch \S+ \(where the run was started 0\): give"
    ):
        run_checked({"torch": "0"}, ran.append, 1)
    assert ran == []
    assert run_checked(own_versions(), abs, -2) == 2


PRETENDER = "from tests.pipelines.test_outside import pretend\npretend({'torch': '9.9'})\n"


def test_a_late_worker_of_another_version_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins in mid-run: the run ends with the reason, and goes on where it was when that worker is gone."""
    capture, expected = quiet(tmp_path / "quiet", monkeypatch)
    run = vectors_run(tmp_path / "run", **SLOW)
    (tmp_path / "pretend.py").write_text(PRETENDER)
    monkeypatch.setattr("pipelines.cluster.LOOK_SECONDS", 0.2)
    with (
        scheduler(tmp_path / "dask") as (address, _),
        process(worker_command(address), tmp_path / "good.log"),
    ):
        wait_for_workers(address, 1)
        with ExitStack() as late:
            command = worker_command(address, "--preload", str(tmp_path / "pretend.py"))

            def join() -> None:
                late.enter_context(process(command, tmp_path / "late.log"))
                wait_for_workers(address, 2)

            events = Events((2, join))
            with pytest.raises(FingerprintError, match=r"has torch 9.9 \(where the run was started 2"):
                run_with(at(run, address), events)
        kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / receipts_path(capture)).glob("sample-*")}
        assert len(kept) >= 2
        made = run_with(at(run, address), Quiet())
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert made.captures[0].id == capture
    assert store_bytes(tmp_path / "run", capture) == expected


def test_a_scheduler_that_is_killed_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends and says so; another scheduler goes on with what is missing."""
    capture, expected = quiet(tmp_path / "quiet", monkeypatch)
    run = vectors_run(tmp_path / "run", **SLOW)
    with (
        scheduler(tmp_path / "dask") as (address, pid),
        process(worker_command(address), tmp_path / "w1.log"),
    ):
        wait_for_workers(address, 1)
        events = Events((3, lambda: os.killpg(pid, signal.SIGKILL)))
        with pytest.raises(ResourceError, match=r"scheduler gave a unit up .*run again to go on"):
            run_with(at(run, address), events)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / receipts_path(capture)).glob("sample-*")}
    assert len(kept) >= 3
    with scheduler(tmp_path / "dask") as (address, _), process(worker_command(address), tmp_path / "w2.log"):
        wait_for_workers(address, 1)
        counted = Events()
        run_with(at(run, address), counted)
    assert counted.done == 20 - len(kept)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert store_bytes(tmp_path / "run", capture) == expected


def test_workers_come_and_go_with_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at first, three while there is much to do, one again afterwards; the window follows."""
    capture, expected = quiet(tmp_path / "quiet", monkeypatch, MORE)
    monkeypatch.setattr("pipelines.cluster.LOOK_SECONDS", 0.2)
    run = vectors_run(tmp_path / "run", **MORE)
    plan = make_plan(run)
    execution = Execution(cluster="processes", workers=3, least_workers=1, device="cpu")
    n_workers: list[int] = []
    in_flight: list[int] = []
    with open_client(execution, 1, "cpu", plan.memory_bytes) as client:

        def count() -> None:
            n_workers.append(len(client.scheduler_info(n_workers=-1)["workers"]))
            in_flight.append(len(client.futures))

        count()
        made = execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), Events((0, count)))
        wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1, 60)
    assert n_workers[0] == 1
    assert max(n_workers) == 3
    assert 5 <= max(in_flight) <= 7  # two for each of three; two were the first window
    assert made.captures[0].id == capture
    assert store_bytes(tmp_path / "run", capture) == expected


def test_units_in_flight_survive_workers_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are taken away and given back by hand while units run on them."""
    capture, expected = quiet(tmp_path / "quiet", monkeypatch)
    run = vectors_run(tmp_path / "run", **SLOW)
    plan = make_plan(run)
    with open_client(
        Execution(cluster="processes", workers=3, device="cpu"), 1, "cpu", plan.memory_bytes
    ) as client:
        events = Events(
            (4, lambda: client.cluster.scale(1)),
            (8, lambda: client.cluster.scale(3)),
            (12, lambda: client.cluster.scale(2)),
        )
        made = execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), events)
    assert made.captures[0].id == capture
    assert store_bytes(tmp_path / "run", capture) == expected

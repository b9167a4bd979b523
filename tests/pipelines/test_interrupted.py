"""Cancelled runs and killed servers: what is finished stays, and running again gives the bytes of a quiet run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipelines.plan import make_plan
from pipelines.serial import run_serial
from pipelines.ui import environment, wait_for
from schemas.run import RunSpec
from tasks.store.location import Location
from tasks.store.verify import verify
from tests.pipelines.runs import store_bytes, vectors_run
from tests.pipelines.served import Served, asked, ended, free_port, running_ui, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]
SAMPLES = 480
UNITS = 4
"""Finished when the blow comes; there are several times as many."""
FEW_TRIES = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
"""Prefect's client tries for a minute by default."""


def slow_run(root: Path) -> RunSpec:
    return vectors_run(root, n=SAMPLES, network={"pause": 0.1}, batch_samples=16)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """The capture's id and bytes where nothing happens."""
    root = tmp_path_factory.mktemp("quiet")
    capture = run_serial(slow_run(root)).captures[0].id
    return capture, store_bytes(root, capture)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_ui(tmp_path_factory.mktemp("prefect"), **FEW_TRIES) as ui:
        yield ui


def write_run(folder: Path) -> str:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(slow_run(folder / "out").model_dump(mode="json")))
    return str(file)


def receipts(folder: Path) -> int:
    return len(list((folder / "out").glob("captures/*.receipts/sample-*.json")))


def sealed(folder: Path) -> bool:
    return bool(list((folder / "out").glob("captures/*.manifest.json")))


def is_like(folder: Path, quiet: tuple[str, dict[str, bytes]]) -> bool:
    root = folder / "out"
    return store_bytes(root, quiet[0]) == quiet[1] and verify(Location(str(root)), quiet[0]) == []


def workers_of(process: int) -> list[psutil.Process]:
    """Dask workers below a process."""
    found = psutil.Process(process).children(recursive=True)
    return [one for one in found if "multiprocessing" in " ".join(one.cmdline())]


def kill_tree(process: psutil.Process) -> None:
    for one in [process, *process.children(recursive=True)]:
        one.kill()


def test_a_cancelled_run_can_be_resumed(
    served: Served, tmp_path: Path, quiet: tuple[str, dict[str, bytes]]
) -> None:
    form = {"run_file": write_run(tmp_path)}
    run = start(served.api, form)
    wait_until(lambda: receipts(tmp_path) >= UNITS, 120)
    workers = workers_of(served.process.pid)
    assert workers
    cancelling: dict[str, Any] = {"state": {"type": "CANCELLING"}}
    asked(served.api, "POST", f"/flow_runs/{run}/set_state", json=cancelling)
    assert wait_until(lambda: ended(served.api, run), 90)["state_type"] == "CANCELLED"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlived a cancelled run"
    done = receipts(tmp_path)
    assert not sealed(tmp_path)
    plan = make_plan(slow_run(tmp_path / "out"))
    assert UNITS <= plan.captures[0].units_done == done < plan.captures[0].n_units
    second = start(served.api, form)
    again = wait_until(lambda: ended(served.api, second), 120)
    assert again["state_type"] == "COMPLETED", again["state"]
    assert is_like(tmp_path, quiet)


def test_a_server_lost_under_a_worker_loses_nothing(
    served: Served, tmp_path: Path, quiet: tuple[str, dict[str, bytes]]
) -> None:
    """The last test of this server."""
    start(served.api, {"run_file": write_run(tmp_path)})
    wait_until(lambda: receipts(tmp_path) >= UNITS, 120)
    servers = [one for one in psutil.Process(served.process.pid).children() if "server" in one.cmdline()]
    assert len(servers) == 1
    kill_tree(servers[0])
    wait_until(lambda: sealed(tmp_path), 120)  # the flow goes on without
    assert is_like(tmp_path, quiet)
    assert not run_serial(slow_run(tmp_path / "out")).captures[0].computed


def test_a_run_that_ended_with_make_ui_blocks_nothing(
    tmp_path: Path, quiet: tuple[str, dict[str, bytes]]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    form = {"run_file": write_run(tmp_path)}
    with running_ui(home) as ui:
        lost = start(ui.api, form)
        wait_until(lambda: receipts(tmp_path) >= UNITS, 120)
    assert not sealed(tmp_path)
    with running_ui(home) as ui:
        assert wait_until(lambda: ended(ui.api, lost), 60)["state_type"] == "CRASHED"
        again = start(ui.api, form)
        done = wait_until(lambda: ended(ui.api, again), 120)
        assert done["state_type"] == "COMPLETED", done["state"]
    assert is_like(tmp_path, quiet)


def test_a_server_lost_under_the_command_line_is_told(
    tmp_path: Path, quiet: tuple[str, dict[str, bytes]]
) -> None:
    port = free_port()
    variables = environment(port, tmp_path / "home", "") | FEW_TRIES
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start"],
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server)
        command = [sys.executable, "-m", "subspan", "run", write_run(tmp_path)]
        with (tmp_path / "told").open("w") as told:
            run = subprocess.Popen(command, env=variables, stdout=told, stderr=told)
            wait_until(lambda: receipts(tmp_path) >= UNITS, 120)
    finally:
        kill_tree(psutil.Process(server.pid))
        server.wait()
    code = run.wait(120)
    text = (tmp_path / "told").read_text()
    assert "Traceback" not in text
    assert f"the Prefect server at http://127.0.0.1:{port}/api does not answer" in " ".join(text.split())
    assert "running again makes only what is missing" in " ".join(text.split())
    assert code == 0  # the captures are sealed: the server's record is all that is missing
    assert is_like(tmp_path, quiet)
    again = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert "0 forwards" in again.stdout


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    variables = os.environ | {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"} | FEW_TRIES
    command = [sys.executable, "-m", "subspan", "run", write_run(tmp_path)]
    made = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 1
    assert "does not answer" in made.stderr
    assert "unset PREFECT_API_URL" in made.stderr

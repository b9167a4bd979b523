"""`make ui` for real: a server, the deployments and a worker; a run from the form's parameters, and one by the clock."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from pipelines.serial import run_serial
from tests.pipelines.runs import vectors_run
from tests.pipelines.test_watch import file_of, told, watched, write_day, write_reference

TOP = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise AssertionError("it did not happen in time")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.ui"], env=environment, cwd=TOP, stdout=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=30) as client:
            wait_until(lambda: len(asked(client, "POST", "/deployments/filter", json={})) == 3)
            yield client
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, "something outlived `make ui`"


def asked(api: httpx.Client, method: str, path: str, **sent: Any) -> Any:
    """What the server answers; asked again while it says 503 (its SQLite file is locked), as Prefect's own client does."""
    answer = wait_until(
        lambda: None if (got := api.request(method, path, **sent)).status_code == 503 else got, 120
    )
    answer.raise_for_status()
    return answer.json()


def deployment(api: httpx.Client, name: str, flow: str = "subspan-run") -> dict[str, Any]:
    return dict(asked(api, "GET", f"/deployments/name/{flow}/{name}"))


def ended(api: httpx.Client, flow_run: str) -> dict[str, Any] | None:
    run = dict(asked(api, "GET", f"/flow_runs/{flow_run}"))
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def test_a_run_from_the_form(api: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    run = vectors_run(tmp_path / "out", n=40, stages={"summary": {"method": "spectrum.summary"}})
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    path = f"/deployments/{deployment(api, 'on-demand')['id']}/create_flow_run"
    run_id = asked(api, "POST", path, json={"parameters": {"form": {"run_file": str(file)}}})["id"]
    done = wait_until(lambda: ended(api, run_id))
    assert done["state_type"] == "COMPLETED", done["state"]
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    artifacts = asked(api, "POST", "/artifacts/filter", json=wanted)
    assert {"captures", "result-summary"} <= {artifact["key"] for artifact in artifacts}
    assert len(list((tmp_path / "out" / "captures").glob("*.manifest.json"))) == 1


def test_the_form_is_checked_before_a_run_exists(api: httpx.Client) -> None:
    refused = api.post(
        f"/deployments/{deployment(api, 'on-demand')['id']}/create_flow_run",
        json={"parameters": {"form": {"dtype": "float8"}}, "enforce_parameter_schema": True},
    )
    assert refused.status_code == 409
    assert "float8" in refused.text


def test_the_clock_starts_a_run(api: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(vectors_run(tmp_path / "out", n=20).model_dump(mode="json")))
    nightly = deployment(api, "nightly")
    assert [schedule["active"] for schedule in nightly["schedules"]] == [False]
    schedule = {
        "schedule": {"cron": "* * * * *", "timezone": "UTC"},
        "active": True,
        "parameters": {"form": {"run_file": str(file)}},
    }
    asked(api, "POST", f"/deployments/{nightly['id']}/schedules", json=[schedule])
    wait_until(lambda: list((tmp_path / "out" / "captures").glob("*.manifest.json")))


def alerts_heard(api: httpx.Client, least: int = 1) -> list[dict[str, Any]]:
    wanted = {"filter": {"event": {"name": ["subspan.alert"]}}, "limit": 50}
    found = asked(api, "POST", "/events/filter", json=wanted)["events"]
    return list(found) if len(found) >= least else []


def test_a_watch_sends_an_alert_that_starts_a_run(api: httpx.Client, tmp_path: Path) -> None:
    write_reference(tmp_path)
    write_day(tmp_path, 1)
    run_serial(watched(tmp_path))
    answer = tmp_path / "answer.yaml"
    answer.write_text(yaml.safe_dump(vectors_run(tmp_path / "answer", n=20).model_dump(mode="json")))
    given = yaml.safe_load((TOP / "deploy" / "alerts.yaml").read_text())["automations"][0]
    given["actions"][0] |= {
        "deployment_id": deployment(api, "on-demand")["id"],
        "parameters": {"form": {"run_file": str(answer)}},
    }
    asked(api, "POST", "/automations/", json=given)
    write_day(tmp_path, 2, shift=6.0)
    path = f"/deployments/{deployment(api, 'daily', 'subspan-watch')['id']}/create_flow_run"
    parameters = {"form": {"run_file": file_of(tmp_path)}}
    for _ in range(2):  # what was told is not told again
        run_id = asked(api, "POST", path, json={"parameters": parameters})["id"]
        done = wait_until(lambda run_id=run_id: ended(api, run_id))
        assert done["state_type"] == "COMPLETED", done["state"]
    events = wait_until(lambda: alerts_heard(api, 2))
    assert len(events) == len(told(tmp_path)) == 2
    assert {event["payload"]["alert"]["kind"] for event in events} == {"flagged", "discoveries"}
    assert {event["resource"]["subspan.stage"] for event in events} == {"judged"}
    assert {related["prefect.resource.role"] for related in events[0]["related"]} >= {
        "flow-run",
        "deployment",
    }
    wait_until(lambda: list((tmp_path / "answer" / "captures").glob("*.manifest.json")))

"""`make ui` for real: a server, the deployments and a worker; a run from the form's parameters, and one by the clock."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from pipelines.serial import run_serial
from tests.pipelines.runs import vectors_run
from tests.pipelines.served import TOP, Served, asked, deployment, ended, running_ui, start, wait_until
from tests.pipelines.test_watch import file_of, told, watched, write_day, write_reference

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running_ui(tmp_path_factory.mktemp("prefect")) as ui:
        yield ui


@pytest.fixture
def api(served: Served) -> httpx.Client:
    return served.api


def listening(served: Served) -> set[tuple[str, str]]:
    """Address and program of every port that `make ui` and what it started listen at."""
    found = set()
    for process in (top := psutil.Process(served.process.pid), *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline()[1:4])
            ports = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            found |= {(port.laddr.ip, name) for port in ports}
    return found


def test_all_that_listens_is_on_loopback(served: Served, tmp_path: Path) -> None:
    """Server, reports, and the Dask scheduler and workers of a run."""
    file = tmp_path / "run.yaml"
    run = vectors_run(tmp_path / "out", n=320, network={"pause": 0.1})
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    run_id = start(served.api, {"run_file": str(file)})
    found: set[tuple[str, str]] = set()
    wait_until(lambda: found.update(listening(served)) or ended(served.api, run_id))
    assert {address for address, _ in found} == {"127.0.0.1"}, found
    assert any("multiprocessing" in name for _, name in found), "workers of the run"
    assert len(found) >= 3


def test_a_run_from_the_form(api: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    run = vectors_run(tmp_path / "out", n=40, stages={"summary": {"method": "spectrum.summary"}})
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    run_id = start(api, {"run_file": str(file)})
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
    form = {"run_file": file_of(tmp_path)}
    for _ in range(2):  # what was told is not told again
        run_id = start(api, form, "daily", "subspan-watch")
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

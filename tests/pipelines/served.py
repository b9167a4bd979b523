"""`make ui` for tests: a server, the deployments, a worker and the reports, and what is asked of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

TOP = Path(__file__).resolve().parent.parent.parent
DEPLOYMENTS = 5


class Served(NamedTuple):
    """What `make ui` started."""

    api: httpx.Client
    url: str
    """Of the web pages."""
    home: Path
    process: "subprocess.Popen[bytes]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path, port: int) -> dict[str, str]:
    """Without settings of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    return kept | {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}


@contextmanager
def running_ui(home: Path, **variables: str) -> Iterator[Served]:
    """Everything that `make ui` starts; nothing of it may outlive it."""
    port = free_port()
    environment = clean_environment(home, port) | {"SUBSPAN_REPORTS_PORT": str(free_port())} | variables
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.ui"], env=environment, cwd=TOP, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=f"{url}/api", timeout=30) as client:
            wait_until(lambda: len(asked(client, "POST", "/deployments/filter", json={})) == DEPLOYMENTS)
            yield Served(client, url, home, process)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, "something outlived `make ui`"


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


def asked(api: httpx.Client, method: str, path: str, **sent: Any) -> Any:
    """What the server answers; asked again while it says 503 (its SQLite file is locked), as Prefect's own client does."""
    answer = wait_until(
        lambda: None if (got := api.request(method, path, **sent)).status_code == 503 else got, 120
    )
    answer.raise_for_status()
    return answer.json() if answer.content else None


def deployment(api: httpx.Client, name: str, flow: str = "subspan-run") -> dict[str, Any]:
    return dict(asked(api, "GET", f"/deployments/name/{flow}/{name}"))


def start(api: httpx.Client, form: dict[str, Any], name: str = "on-demand", flow: str = "subspan-run") -> str:
    """A run of a deployment, with the form filled; its id."""
    path = f"/deployments/{deployment(api, name, flow)['id']}/create_flow_run"
    return str(asked(api, "POST", path, json={"parameters": {"form": form}})["id"])


def ended(api: httpx.Client, flow_run: str) -> dict[str, Any] | None:
    run = dict(asked(api, "GET", f"/flow_runs/{flow_run}"))
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

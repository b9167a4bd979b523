"""`make ui`: a Prefect server on loopback, the deployments, a worker and the reports server, until Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from pipelines.reports import URL, serving

HOST = "127.0.0.1"
START_SECONDS = 180


def environment(port: int, home: Path, reports: str) -> dict[str, str]:
    """The settings of server, worker and flows; nothing is sent anywhere."""
    return os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),  # the variable, not the flag: the web page reads it too
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "DO_NOT_TRACK": "1",
        "DASK_LOGGING__DISTRIBUTED": "error",
        "HF_HUB_OFFLINE": "1",
        URL: reports,
        "PROJECT_ROOT": str(Path(__file__).resolve().parent.parent),
    }


def main(port: int = 4200, reports_port: int = 4201) -> int:
    """Start everything, say where it is, and stop everything on Ctrl-C, SIGTERM or when the terminal is closed."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell has what it starts in the background ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    home = Path(os.environ.get("PREFECT_HOME", Path.cwd() / ".prefect"))
    try:
        with serving(HOST, reports_port, home) as reports:
            return serve(port, environment(port, home, reports))
    except KeyboardInterrupt:
        return 0


def serve(port: int, env: dict[str, str]) -> int:
    """Server, pool, deployments and worker, until the worker ends."""
    prefect = [sys.executable, "-m", "prefect"]
    project = Path(env["PROJECT_ROOT"])
    # In a group of its own: told to stop by the terminal and again by us, it prints hundreds of lines of tracebacks.
    server = subprocess.Popen(
        [*prefect, "server", "start"], env=env, stdout=subprocess.DEVNULL, process_group=0
    )
    worker = None
    try:
        wait_for(f"http://{HOST}:{port}/api/health", server)
        pool = ["work-pool", "create", "local", "--type", "process", "--overwrite"]
        quietly([*prefect, *pool], env, project)
        deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", "deploy/prefect.yaml"]
        quietly([*prefect, *deploy], env, project)
        if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in env:  # else other machines may have workers there
            end_lost_runs(env["PREFECT_API_URL"])
        worker = subprocess.Popen([*prefect, "worker", "start", "--pool", "local"], env=env, cwd=project)
        sys.stdout.write(
            f"\nOpen http://{HOST}:{port}/deployments and choose 'subspan-run/on-demand' -> Run. "
            f"Reports open from the run's Artifacts ({env[URL]}). "
            f"For `prefect` in another terminal: export PREFECT_API_URL={env['PREFECT_API_URL']}. Ctrl-C stops.\n"
        )
        sys.stdout.flush()
        return worker.wait()
    finally:
        for process in (worker, server):
            stop(process)


def quietly(command: list[str], env: dict[str, str], folder: Path) -> None:
    """Run a command whose advice would mislead (a worker and the server's address are given here already); its output is for failures.

    Raises:
        RuntimeError: if it fails, with what it said.
    """
    done = subprocess.run(
        command, env=env, cwd=folder, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command[1:])}` gave exit code {done.returncode}:\n{done.stdout}")


def end_lost_runs(api: str) -> None:
    """Tell the server of runs whose process went with an earlier `make ui`: each would stay Running, and hold the only slot of its
    deployment, for ever; a Cancelling one too."""
    states = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}
    wanted = {"flow_runs": {"state": states}, "work_pools": {"name": {"any_": ["local"]}}}
    for run in posted(f"{api}/flow_runs/filter", wanted):
        if not is_flow(run["infrastructure_pid"]):
            ended = "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED"
            message = (
                "Its process ended with an earlier `make ui`; the same run again makes only what is missing."
            )
            posted(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": ended, "message": message}})


def is_flow(pid: str | None) -> bool:
    """Whether a process of this machine is there and carries out a flow."""
    try:
        return pid is not None and any("prefect" in word for word in psutil.Process(int(pid)).cmdline())
    except (psutil.Error, ValueError):
        return False


def posted(url: str, what: dict[str, Any]) -> Any:
    """What the server answers."""
    request = urllib.request.Request(url, json.dumps(what).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server answers.

    Raises:
        RuntimeError: if it stops or does not answer in time.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(
                f"the Prefect server stopped with exit code {server.returncode}; is the port in use?"
            )
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the Prefect server did not answer at {url} within {START_SECONDS} s")


def stop(process: "subprocess.Popen[bytes] | None") -> None:
    """End a process, kindly first."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    given = int(os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
    sys.exit(main(given, int(os.environ.get("SUBSPAN_REPORTS_PORT", given + 1))))

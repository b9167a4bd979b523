"""Schedulers and workers as processes of their own, as others would start them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed import Client

DASK = (str(Path(sys.executable).parent / "dask"),)

TOLD = {"DASK_LOGGING__DISTRIBUTED": "info"}
"""A scheduler tells its address in its log, which flows keep quiet."""


@contextmanager
def process(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, with the project on its path; killed on the way out."""
    variables = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", **TOLD} | environment
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, stdout=out, stderr=out, env=variables, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(30)


@contextmanager
def scheduler(folder: Path, host: str = "127.0.0.1", **environment: str) -> Iterator[tuple[str, int]]:
    """A scheduler's address and process number."""
    folder.mkdir(exist_ok=True)
    log = folder / "scheduler.log"
    command = [
        *DASK,
        "scheduler",
        "--host",
        host,
        "--port",
        "0",
        "--no-dashboard",
        "--dashboard-address",
        "127.0.0.1:0",
    ]
    with process(command, log, **environment) as started:
        wait_until(lambda: "Scheduler at:" in log.read_text(), 60)
        line = next(line for line in log.read_text().splitlines() if "Scheduler at:" in line)
        yield line.rpartition(" ")[2], started.pid


def worker_command(address: str, *more: str) -> list[str]:
    """A worker without a nanny: what is killed stays dead."""
    return [*DASK, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", *more]


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def wait_for_workers(address: str, n: int) -> None:
    """Wait until so many workers have joined."""
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(n, timeout=60)

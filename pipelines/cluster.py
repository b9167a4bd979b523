"""Execution -> a Dask cluster, and the driver that runs units on it.

Only the flow's process submits. Units are futures in a bounded window, released as they finish, so that a dead worker
never causes finished work to be held or run again.
"""

import importlib.util
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

import dask
from dask.utils import funcname
from distributed import Client, as_completed
from distributed.client import FutureCancelledError
from distributed.comm.addressing import parse_address
from distributed.comm.registry import get_backend
from distributed.scheduler import KilledWorker
from distributed.security import Security

from pipelines.cluster_file import load_cluster
from pipelines.worker_checks import check_memory, check_threads, check_versions
from pipelines.workers_elsewhere import remote_cluster, wait_for_first
from pipelines.workers_here import local_cluster
from schemas.errors import ResourceError, StoreError, UnitError
from schemas.execution import Execution
from tasks.versions import expected_versions, run_checked

T = TypeVar("T")
R = TypeVar("R")

QUIET = {
    "distributed.logging.distributed": "error",
    "distributed.admin.tick.limit": "60s",
    # Dask watches itself: that takes time from the forwards, and nobody looks at it.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}
START_SECONDS = 120
NEVER = "36500d"
"""Workers that died come back by themselves. Dask would end for good one that is not there 15 seconds after it died: because it is slow to
start, or died again just then; when all are gone, tasks wait for ever."""
BACK_SECONDS, LOOK_SECONDS = 600, 5
"""How long units wait while there is no worker at all, at least, and how often that is looked at."""
POLL_SECONDS = 0.01


@contextmanager
def open_client(execution: Execution, threads: int, device: str, needed_bytes: int = 0) -> Iterator[Client]:
    """A client of the cluster that the execution asks for; a cluster made here is closed on the way out.

    Raises:
        ResourceError: if workers have less memory than a unit needs, several threads, or do not come; the message has both numbers.
        FingerprintError: if workers that others start have other versions than this process.
        StoreError: if the scheduler at `execution.address` cannot be reached.
    """
    with dask.config.set(QUIET), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        if execution.cluster == "address":
            with _connect(execution) as client:
                _check(client, execution, needed_bytes)
                yield client
        elif execution.cluster == "file":
            found = load_cluster(execution)
            with remote_cluster(found, execution, threads) as cluster, _client(cluster) as client:
                wait_for_first(client, found)
                _check(client, execution, needed_bytes)
                yield client
        else:
            with (
                dask.config.set({"distributed.deploy.lost-worker-timeout": NEVER}),
                local_cluster(execution, threads, device, needed_bytes) as cluster,
                _client(cluster) as client,
            ):
                client.wait_for_workers(len(cluster.worker_spec), timeout=START_SECONDS)
                yield client


def _client(cluster: Any) -> Client:
    return Client(cluster, set_as_default=False)


def _check(client: Client, execution: Execution, needed_bytes: int) -> None:
    check_versions(client, execution.mix_fingerprints)
    check_threads(client)
    check_memory(client, needed_bytes)


def scheduler_page(client: Client) -> tuple[str, str] | None:
    """What the scheduler shows of itself, as text and URL: its dashboard where bokeh is installed, else plain pages of workers and
    tasks. None where it serves no pages.
    """
    if "dashboard" not in client.scheduler_info(n_workers=0)["services"]:
        return None
    link: str = client.dashboard_link
    if importlib.util.find_spec("bokeh") is not None:
        return "Dask dashboard", link
    return "Dask workers", f"{link.removesuffix('/status')}/info/main/workers.html"


class DaskDriver:
    """Runs a function over items on the workers of a client: see tasks.drive.Driver.

    Workers may come and go meanwhile: the window follows their number.
    """

    def __init__(
        self, client: Client, window: int = 4, mix_versions: bool = False, back_seconds: float | None = None
    ) -> None:
        self.client = client
        self.window = window
        self.back_seconds = back_seconds or BACK_SECONDS
        self._expected = expected_versions(mix_versions)

    def __call__(self, function: Callable[[T], R], items: Sequence[T], on_done: Callable[[R], None]) -> None:
        """Run all items; `on_done` is called here, in the order in which items finish.

        Raises:
            Whatever the function raised first; items in flight are cancelled, finished ones stay finished.
        """
        todo = iter(items)
        running = as_completed(loop=self.client.loop)
        in_flight: set[Any] = set()
        room = self._room(self.n_workers())

        def submit(n: int) -> None:
            for item in islice(todo, max(0, n)):
                future = self._submit(function, item)
                in_flight.add(future)
                running.add(future)

        submit(room)
        try:
            for future in self._finished(running):
                if isinstance(future, int):
                    room = self._room(future)
                else:
                    on_done(_result(future))
                    in_flight.discard(future)
                    future.release()
                submit(room - len(in_flight))
        finally:
            if in_flight:
                self.client.cancel(list(in_flight))

    def _finished(self, running: Any) -> Iterator[Any]:
        """Futures as they finish, those added meanwhile too; and now and then how many workers there are."""
        looked = there = time.monotonic()
        while not running.is_empty():
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                n = None
                with suppress(OSError):  # a scheduler that cannot be reached ends the futures itself
                    n = self.n_workers()
                there = looked if n else there
                _refuse_waiting(looked - there, self.back_seconds)
                if n is not None:
                    yield n
            if running.has_ready():
                yield next(running)
            else:
                time.sleep(POLL_SECONDS)

    def _room(self, n_workers: int) -> int:
        return self.window * max(1, n_workers)

    def n_workers(self) -> int:
        """Workers that are there now.

        Raises:
            OSError: if the scheduler cannot be reached.
        """
        found = self.client.scheduler_info(n_workers=-1)
        if "workers" not in found:  # what Dask says then
            raise ConnectionError("the Dask scheduler does not answer")
        return len(found["workers"])

    def _submit(self, function: Callable[[T], R], item: T) -> Any:
        key = f"{funcname(function)}-{uuid.uuid4().hex}"
        return self.client.submit(run_checked, self._expected, function, item, key=key, pure=False)


def _result(future: Any) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        raise UnitError(
            f"a unit killed its worker {error.allowed_failures + 1} times, last on {error.last_worker}: most often the memory "
            "ran out; lower store.shard_rows or batch_tokens, or give workers more memory (execution.worker_memory_bytes)"
        ) from error
    except FutureCancelledError as error:
        raise ResourceError(
            f"the Dask scheduler gave a unit up ({error.reason}): it ended, cannot be reached any more, or was told to cancel; finished "
            "units are kept, run again to go on"
        ) from error


def back_seconds(execution: Execution) -> float:
    """How long units wait while there is no worker at all: jobs may queue as long as they may for the first one."""
    if execution.cluster != "file":
        return BACK_SECONDS
    return max(BACK_SECONDS, 60 * load_cluster(execution).wait_minutes)


def _refuse_waiting(seconds: float, limit: float) -> None:
    if seconds > limit:
        raise ResourceError(
            f"all workers ended and none came back for {seconds:.0f} seconds: look at what they print (no memory, a lost device), or "
            "whether jobs wait in a queue; finished units are kept, run again to go on"
        )


def _connect(execution: Execution) -> Client:
    _check_address(str(execution.address))
    try:
        client = Client(execution.address, timeout=30, set_as_default=False)
    except OSError as error:
        raise StoreError(
            f"no Dask scheduler answers at {execution.address}: {error}; start one, or use cluster: processes"
        ) from error
    if not client.scheduler_info(n_workers=-1)["workers"]:
        client.close()
        raise ResourceError(
            f"the scheduler at {execution.address} has no workers: start some with `dask worker --nthreads 1 {execution.address}`"
        )
    return client


def _check_address(address: str) -> None:
    """Refuse what a client would be half made for, which then waits a minute to be closed."""
    try:
        scheme, _ = parse_address(address)
        get_backend(scheme)
        context = Security().get_connection_args("client").get("ssl_context")
        why = "TLS has no certificates" if scheme == "tls" and context is None else None
    except (ValueError, OSError) as error:
        why = str(error)
    if why is not None:
        raise ResourceError(
            f"execution.address is {address}, which Dask cannot use: {why}; give tcp://host:8786, or tls://... with "
            "DASK_DISTRIBUTED__COMM__TLS__* set"
        )

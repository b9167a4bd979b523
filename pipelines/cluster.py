"""Execution -> a Dask cluster, and the driver that runs units on it.

Only the flow's process submits. Units are futures in a bounded window, released as they finish, so that a dead worker
never causes finished work to be held or run again. Everything is spawned: forked processes hang with s3fs and torch.
"""

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

import dask
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, as_completed
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from pipelines.devices import gpu_count, require_worker_memory, resolve_device, worker_count
from schemas.errors import ResourceError, StoreError, UnitError
from schemas.execution import Execution
from tasks.extract.allocator import ARENAS, KEEP_BYTES
from tasks.threads import thread_variables

__all__ = ["DaskDriver", "open_client", "resolve_device", "shared_device", "worker_environment"]

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
"""How long units wait while there is no worker at all, and how often that is looked at."""
POLL_SECONDS = 0.01


@contextmanager
def open_client(execution: Execution, threads: int, device: str, needed_bytes: int = 0) -> Iterator[Client]:
    """A client of the cluster that the execution asks for; a cluster made here is closed on the way out.

    Raises:
        ResourceError: if workers have less memory than a unit needs; the message has both numbers.
        StoreError: if the scheduler at `execution.address` cannot be reached.
    """
    patient = {"distributed.deploy.lost-worker-timeout": NEVER}
    with dask.config.set(QUIET | patient), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        if execution.cluster == "address":
            with _connect(execution) as client:
                _check_memory(client, needed_bytes)
                yield client
            return
        with (
            _start(execution, threads, device, needed_bytes) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.wait_for_workers(len(cluster.worker_spec), timeout=START_SECONDS)
            yield client


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
    """Runs a function over items on the workers of a client: see tasks.drive.Driver."""

    def __init__(self, client: Client, window: int = 4) -> None:
        self.client = client
        self.window = window

    def __call__(self, function: Callable[[T], R], items: Sequence[T], on_done: Callable[[R], None]) -> None:
        """Run all items; `on_done` is called here, in the order in which items finish.

        Raises:
            Whatever the function raised first; items in flight are cancelled, finished ones stay finished.
        """
        todo = iter(items)
        first = [
            self._submit(function, item) for item in islice(todo, self.window * max(1, self.n_workers()))
        ]
        running = as_completed(first, loop=self.client.loop)
        in_flight = set(first)
        try:
            for future in self._finished(running):
                on_done(_result(future))
                in_flight.discard(future)
                future.release()
                item = next(todo, None)
                if item is not None:
                    successor = self._submit(function, item)
                    in_flight.add(successor)
                    running.add(successor)
        finally:
            if in_flight:
                self.client.cancel(list(in_flight))

    def _finished(self, running: Any) -> Iterator[Any]:
        """Futures as they finish; those added meanwhile too."""
        looked = there = time.monotonic()
        while not running.is_empty():
            if running.has_ready():
                yield next(running)
                continue
            time.sleep(POLL_SECONDS)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                with suppress(OSError):  # a scheduler that cannot be reached ends the futures itself
                    there = there if self.n_workers() == 0 else looked
                _refuse_waiting(looked - there)

    def n_workers(self) -> int:
        """Workers that are there now."""
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def _submit(self, function: Callable[[T], R], item: T) -> Any:
        return self.client.submit(function, item, pure=False)


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


def _refuse_waiting(seconds: float) -> None:
    if seconds > BACK_SECONDS:
        raise ResourceError(
            f"all workers died and none came back for {seconds:.0f} seconds: look at what they print (no memory, a lost device); "
            "finished units are kept, run again to go on"
        )


def _start(execution: Execution, threads: int, device: str, needed_bytes: int) -> Any:
    n_workers = worker_count(execution, threads, device)
    require_worker_memory(execution, needed_bytes, n_workers)
    environment = worker_environment(threads)
    options = {
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.scheduler.allowed-failures": execution.retries,
    }
    with dask.config.set(options):
        if device == "cuda":
            return _gpu_cluster(n_workers, environment)
        return LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=50,
        )


def worker_environment(threads: int) -> dict[str, str]:
    """What must be set before a worker loads torch: results depend on the thread count."""
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    # From the start of the process; Dask would set the first to 64 KiB. See tasks.extract.allocator.
    keep = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(KEEP_BYTES))
    keep |= {"MALLOC_ARENA_MAX": str(ARENAS)}
    return thread_variables(threads) | keep | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def _gpu_cluster(n_workers: int, environment: dict[str, str]) -> Any:
    options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0}
    shares = gpu_shares(_visible_gpus(), n_workers)
    spec = {
        i: {"cls": Nanny, "options": options | {"env": environment | {"CUDA_VISIBLE_DEVICES": share}}}
        for i, share in enumerate(shares)
    }
    return SpecCluster(
        workers=spec,
        scheduler={
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"},
        },
        silence_logs=50,
    )


def gpu_shares(gpus: list[str], n_workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker: one GPU each, several where there are fewer workers, shared where there are more."""
    return [",".join(gpus[i::n_workers] or [gpus[i % len(gpus)]]) for i in range(n_workers)]


def _connect(execution: Execution) -> Client:
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
    client.get_versions(check=True, packages=["torch", "zarr", "numpy"])
    _check_threads(client)
    return client


def _check_threads(client: Client) -> None:
    """Refuse workers that run several units at a time: they would share one network and its hooks."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    several = {address: worker["nthreads"] for address, worker in workers.items() if worker["nthreads"] != 1}
    if several:
        address, threads = next(iter(several.items()))
        client.close()
        raise ResourceError(
            f"worker {address} has {threads} Dask threads ({len(several)} of {len(workers)} workers have several), expected 1: "
            "start workers with `dask worker --nthreads 1`, as many as the machine has cores, or one per GPU"
        )


def shared_device(client: Client, execution: Execution) -> str:
    """`cpu` or `cuda`: what every worker of an existing cluster can use, as the execution asks.

    Raises:
        ResourceError: if a GPU is asked for and a worker has none, or if only some have one and nothing is asked.
    """
    if execution.device == "cpu":
        return "cpu"
    without = [address for address, count in client.run(gpu_count).items() if count == 0]
    n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not without:
        return "cuda"
    if execution.device == "cuda" or len(without) < n_workers:
        raise ResourceError(
            f"{len(without)} of {n_workers} workers at {execution.address} see no CUDA device, such as {without[0]}: set execution.device "
            "to cpu, or use workers of one kind"
        )
    return "cpu"


def _check_memory(client: Client, needed_bytes: int) -> None:
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        limit = worker["memory_limit"]
        if limit and limit < needed_bytes:
            raise ResourceError(
                f"a unit needs about {needed_bytes / 2**20:.0f} MiB, worker {address} has {limit / 2**20:.0f} MiB: "
                "lower store.shard_rows or batch_tokens, or start workers with more memory"
            )


def _visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(gpu_count())]

"""Execution -> a Dask cluster, and the driver that runs units on it.

Only the flow's process submits. Units are futures in a bounded window, released as they finish, so that a dead worker
never causes finished work to be held or run again. Everything is spawned: forked processes hang with s3fs and torch.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import dask
import psutil
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster, as_completed
from distributed.scheduler import KilledWorker

from schemas.errors import ResourceError, StoreError, UnitError
from schemas.execution import Execution
from tasks.extract.allocator import ARENAS, KEEP_BYTES, KERNELS

T = TypeVar("T")
R = TypeVar("R")

QUIET = {"distributed.logging.distributed": "error", "distributed.admin.tick.limit": "60s"}
START_SECONDS = 120


def resolve_device(execution: Execution) -> str:
    """`cpu` or `cuda` for the workers.

    Raises:
        ResourceError: if a GPU is asked for and torch sees none.
    """
    wants_gpu = execution.device == "cuda" or execution.cluster == "gpus"
    if execution.device == "cpu" or (execution.cluster == "processes" and not wants_gpu):
        return "cpu"
    n_gpus = _gpu_count()
    if wants_gpu and n_gpus == 0 and execution.cluster != "address":
        raise ResourceError(
            "found no CUDA device, the run asks for one: set execution.device to cpu, or install torch with CUDA"
        )
    return "cuda" if n_gpus or wants_gpu else "cpu"


def worker_count(execution: Execution, threads: int, device: str) -> int:
    """Worker processes on this machine."""
    if execution.workers is not None:
        return execution.workers
    return _gpu_count() if device == "cuda" else max(1, len(os.sched_getaffinity(0)) // threads)


def worker_memory(execution: Execution, n_workers: int) -> int:
    """Bytes that one worker on this machine may use."""
    return execution.worker_memory_bytes or int(
        min(psutil.virtual_memory().total, _container_limit()) * 0.9 / n_workers
    )


@contextmanager
def open_client(execution: Execution, threads: int, device: str, needed_bytes: int = 0) -> Iterator[Client]:
    """A client of the cluster that the execution asks for; a cluster made here is closed on the way out.

    Raises:
        ResourceError: if workers have less memory than a unit needs; the message has both numbers.
        StoreError: if the scheduler at `execution.address` cannot be reached.
    """
    with dask.config.set(QUIET), warnings.catch_warnings():
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
        n_workers = max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
        first = [self._submit(function, item) for item in islice(todo, self.window * n_workers)]
        running = as_completed(first, loop=self.client.loop)
        in_flight = set(first)
        try:
            for future in running:
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


def _start(execution: Execution, threads: int, device: str, needed_bytes: int) -> Any:
    n_workers = worker_count(execution, threads, device)
    memory = worker_memory(execution, n_workers)
    if needed_bytes > memory:
        raise ResourceError(
            f"a unit needs about {needed_bytes / 2**20:.0f} MiB, a worker has {memory / 2**20:.0f} MiB ({n_workers} workers): "
            "lower store.shard_rows, batch_tokens or execution.workers"
        )
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
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    # From the start of the process; Dask would set the first to 64 KiB. See tasks.extract.allocator.
    keep = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(KEEP_BYTES))
    keep |= {"MALLOC_ARENA_MAX": str(ARENAS), "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNELS)}
    return dict.fromkeys(names, count) | keep | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def _gpu_cluster(n_workers: int, environment: dict[str, str]) -> Any:
    options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0}
    gpus = _visible_gpus()
    spec = {
        i: {
            "cls": Nanny,
            "options": options | {"env": environment | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}},
        }
        for i in range(n_workers)
    }
    return SpecCluster(
        workers=spec,
        scheduler={
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"},
        },
        silence_logs=50,
    )


def _connect(execution: Execution) -> Client:
    if not execution.address:
        raise StoreError(
            "execution.cluster is 'address' and execution.address is empty: give the scheduler, such as tcp://host:8786"
        )
    try:
        client = Client(execution.address, timeout=30, set_as_default=False)
    except OSError as error:
        raise StoreError(
            f"no Dask scheduler answers at {execution.address}: {error}; start one, or use cluster: processes"
        ) from error
    if not client.scheduler_info(n_workers=-1)["workers"]:
        client.close()
        raise ResourceError(
            f"the scheduler at {execution.address} has no workers: start some with `dask worker {execution.address}`"
        )
    client.get_versions(check=True, packages=["torch", "zarr", "numpy"])
    return client


def _check_memory(client: Client, needed_bytes: int) -> None:
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        limit = worker["memory_limit"]
        if limit and limit < needed_bytes:
            raise ResourceError(
                f"a unit needs about {needed_bytes / 2**20:.0f} MiB, worker {address} has {limit / 2**20:.0f} MiB: "
                "lower store.shard_rows or batch_tokens, or start workers with more memory"
            )


def _container_limit() -> int:
    """Memory that the container of this process may use; a huge number outside of one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return 1 << 62


def _visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(_gpu_count())]


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

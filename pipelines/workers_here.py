"""Workers on this machine: processes of one core or more, or one for each GPU. Everything is spawned: forked processes hang with
s3fs and torch.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import LocalCluster, Nanny, Scheduler, SpecCluster

from pipelines.devices import gpu_count, require_worker_memory, worker_count
from schemas.execution import Execution
from tasks.extract.allocator import ARENAS, KEEP_BYTES
from tasks.threads import thread_variables

AT_ONCE = "1ms"
"""In what time Dask's scheduler wants all that it knows of done: so it asks for a worker for each unit. It knows those in flight alone."""
ADAPTIVE = {"interval": "1s", "wait_count": 5, "target_duration": AT_ONCE}
"""How often workers that come and go are counted anew; one goes that was not needed five times in turn."""


@contextmanager
def local_cluster(execution: Execution, threads: int, device: str, needed_bytes: int) -> Iterator[Any]:
    """Workers on this machine, for as long as the `with`.

    Raises:
        ResourceError: if one has less memory than a unit needs; with both numbers.
    """
    n_workers = worker_count(execution, threads, device)
    require_worker_memory(execution, needed_bytes, n_workers)
    environment = worker_environment(threads)
    options = {
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.scheduler.allowed-failures": execution.retries,
    }
    with dask.config.set(options):  # also for workers that come later
        gpus = device == "cuda"
        first = execution.least_workers or n_workers
        with _gpu_cluster(n_workers, environment) if gpus else _cpu_cluster(first) as cluster:
            if execution.least_workers is not None:
                cluster.adapt(minimum=execution.least_workers, maximum=n_workers, **ADAPTIVE)
            yield cluster


def _cpu_cluster(n_workers: int) -> Any:
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
    """One process per GPU: by dask-cuda where it is installed, which also binds each to the cores beside its GPU."""
    gpus = _visible_gpus()
    if importlib.util.find_spec("dask_cuda") is not None and n_workers == len(gpus):
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(
            CUDA_VISIBLE_DEVICES=gpus,
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=0,
            device_memory_limit=None,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )
    options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0}
    shares = gpu_shares(gpus, n_workers)
    spec = {
        i: {"cls": Nanny, "options": options | {"env": environment | {"CUDA_VISIBLE_DEVICES": share}}}
        for i, share in enumerate(shares)
    }
    return _GpuCluster(
        workers=spec,
        scheduler={
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"},
        },
        silence_logs=50,
    )


class _GpuCluster(SpecCluster):  # type: ignore[misc]
    """One whose workers come back, each with the GPUs that it had."""

    def __init__(self, workers: dict[int, Any], **options: Any) -> None:
        self.every = dict(workers)
        super().__init__(workers=workers, **options)

    def new_worker_spec(self) -> dict[int, Any]:
        """The first that is not there."""
        name = next(i for i in self.every if i not in self.worker_spec)
        return {name: self.every[name]}


def gpu_shares(gpus: list[str], n_workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker: one GPU each, several where there are fewer workers, shared where there are more."""
    return [",".join(gpus[i::n_workers] or [gpus[i % len(gpus)]]) for i in range(n_workers)]


def _visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(gpu_count())]

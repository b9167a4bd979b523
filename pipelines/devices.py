"""What this machine offers a run: devices, workers and their memory. Needs no Dask, and torch only to count GPUs."""

import os
from pathlib import Path

import psutil

from schemas.errors import ResourceError
from schemas.execution import Execution

SHARE = 0.9
"""Of the machine's memory that workers may use together; the rest is the flow's and the system's."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says how much memory it may use: cgroup version 2 and 1."""
UNLIMITED = 1 << 62


def here(execution: Execution) -> Execution:
    """The execution as this machine does it alone: workers elsewhere are left out."""
    alone = {"cluster": "auto", "address": None, "file": None, "least_workers": None}
    return execution.model_copy(update=alone) if execution.cluster in ("address", "file") else execution


def resolve_device(execution: Execution) -> str:
    """`cpu` or `cuda` for the workers.

    Raises:
        ResourceError: if a GPU is asked for and torch sees none, or for threads of one process.
    """
    if execution.cluster == "threads" and execution.device == "cuda":
        raise ResourceError(
            "execution.cluster is threads and execution.device is cuda: threads share a CPU; set cluster to gpus, or device to cpu"
        )
    if execution.cluster == "threads":
        return "cpu"
    wants_gpu = execution.device == "cuda" or execution.cluster == "gpus"
    if execution.device == "cpu" or (execution.cluster == "processes" and not wants_gpu):
        return "cpu"
    n_gpus = gpu_count()
    if wants_gpu and n_gpus == 0 and execution.cluster != "address":
        raise ResourceError(
            "found no CUDA device, the run asks for one: set execution.device to cpu, or install torch with CUDA"
        )
    return "cuda" if n_gpus or wants_gpu else "cpu"


def worker_count(execution: Execution, threads: int, device: str) -> int:
    """Worker processes on this machine, or threads of this process."""
    if execution.workers is not None:
        return execution.workers
    return gpu_count() if device == "cuda" else max(1, len(os.sched_getaffinity(0)) // threads)


def worker_memory(execution: Execution, n_workers: int) -> int:
    """Bytes that one worker on this machine may use."""
    machine = min(psutil.virtual_memory().total, container_limit())
    return execution.worker_memory_bytes or int(machine * SHARE / n_workers)


def own_memory(execution: Execution) -> int:
    """Bytes that this process may use where it does all the work itself: what is free, and what it holds already."""
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    return execution.worker_memory_bytes or min(free, container_limit())


def require_memory(needed: int, memory: int, who: str, cure: str, what: str = "a unit") -> None:
    """Refuse a worker whose memory does not suffice.

    Raises:
        ResourceError: with the bytes needed and there.
    """
    if needed > memory:
        raise ResourceError(
            f"{what} needs about {needed / 2**20:.0f} MiB, {who} has {memory / 2**20:.0f} MiB: {cure}"
        )


def require_worker_memory(execution: Execution, needed: int, n_workers: int) -> None:
    """Refuse workers of this machine that have too little memory for a unit.

    Raises:
        ResourceError: with the bytes needed and there.
    """
    cure = f"lower store.shard_rows, batch_tokens or execution.workers (now {n_workers})"
    require_memory(needed, worker_memory(execution, n_workers), "a worker", cure)


def container_limit() -> int:
    """Memory that the container of this process may use; a huge number outside of one."""
    for path in LIMITS:
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return UNLIMITED


def gpu_count() -> int:
    """CUDA devices that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

"""What is refused before the first unit, and before anything is created: a root that workers cannot reach, an absent
device, too little memory, too small a disk. `subspan plan`, `--serial` and the flow ask the same questions here.
"""

from typing import NamedTuple

from pipelines.cluster_file import load_cluster
from pipelines.devices import (
    here,
    own_memory,
    require_memory,
    require_worker_memory,
    resolve_device,
    worker_count,
)
from pipelines.plan import Plan
from schemas.errors import ResourceError
from tasks.store.location import Location

MEMORY = "memory://"


class Workers(NamedTuple):
    """Who runs the units of a plan."""

    device: str | None
    """`cpu` or `cuda`; None where only the workers, on other machines, can tell."""
    n: int | None
    """Worker processes, or threads of this process; None where only their scheduler can tell."""


def check_plan(plan: Plan, serial: bool = False) -> None:
    """Refuse what cannot be executed here. A plan with nothing to compute is never refused.

    Where the workers belong to a scheduler elsewhere, their devices and memory are checked when it is reached.

    Args:
        plan: what would be run.
        serial: whether this process does all the work itself.

    Raises:
        ResourceError: for a root, a device, memory or a disk that does not suffice; with both numbers.
    """
    if plan.finished:
        return
    _check_root(plan, serial)
    _check_threads(plan)
    _check_memory(plan, workers_of(plan, serial), serial)
    check_disk(plan)


def refusal(plan: Plan, serial: bool = False) -> ResourceError | None:
    """What `check_plan` raises, to be raised later; None where the plan can be executed."""
    try:
        check_plan(plan, serial)
    except ResourceError as error:
        return error
    return None


def workers_of(plan: Plan, serial: bool = False) -> Workers:
    """Who will run the units.

    Raises:
        ResourceError: if a GPU is asked for and there is none, or the package that a cluster file needs is missing.
        SpecError: if a cluster file is wrong.
    """
    execution = plan.execution
    if serial and execution.cluster != "threads":
        return Workers(resolve_device(here(execution)), 1)
    if execution.cluster == "address":
        return Workers(None, None)
    if execution.cluster == "file":
        gpus = load_cluster(execution).gpus
        return Workers("cuda" if gpus and execution.device != "cpu" else "cpu", execution.workers)
    device = resolve_device(execution)
    return Workers(device, worker_count(execution, plan.threads, device))


def check_disk(plan: Plan) -> None:
    """Refuse a plan that does not fit on a local disk.

    Raises:
        ResourceError: with the bytes needed and free.
    """
    free = Location(plan.run.root).free_bytes()
    if free is not None and plan.bytes_on_disk > free:
        raise ResourceError(
            f"the run writes up to {plan.bytes_on_disk:,} bytes below {plan.run.root}, {free:,} are free: "
            "choose another root, fewer sites, a smaller subset, or store.dtype float16"
        )


def _check_root(plan: Plan, serial: bool) -> None:
    if not serial and plan.execution.cluster != "threads" and MEMORY in Location(plan.run.root).url:
        raise ResourceError(
            f"the root is {plan.run.root}, the workers are other processes, and {MEMORY} lives in one process: use --serial, "
            "or a place that all can reach, such as a folder or s3://bucket/prefix"
        )
    why = Location(plan.run.root).refuses_writing()
    if why:
        raise ResourceError(
            f"nothing can be written below the root {plan.run.root}: {why}; choose another root"
        )


def _check_threads(plan: Plan) -> None:
    """Threads that run units compute alone: BLAS counts its threads for a whole process."""
    asked = max((c.spec.request.precision.threads for c in plan.captures if not c.sealed), default=1)
    if plan.execution.cluster == "threads" and asked > 1:
        raise ResourceError(
            f"execution.cluster is threads, and a capture asks for precision.threads {asked}, expected 1: units run in several threads, "
            "which compute alone; set precision.threads to 1, or cluster to processes"
        )


def _check_memory(plan: Plan, workers: Workers, serial: bool) -> None:
    execution = plan.execution
    if execution.cluster == "threads" and workers.n is not None:
        cure = f"lower execution.workers (now {workers.n}), store.shard_rows or batch_tokens, or free memory on this machine"
        if execution.worker_memory_bytes is not None:
            cure += ", or raise execution.worker_memory_bytes"
        needed, what = plan.threads_memory_bytes(workers.n), f"up to {workers.n} units at a time"
        require_memory(needed, own_memory(execution), "this process", cure, what)
    elif serial:
        cure = "lower store.shard_rows or batch_tokens, or free memory on this machine"
        require_memory(plan.memory_bytes, own_memory(execution), "this process", cure)
    elif execution.cluster == "file":
        cure = f"lower store.shard_rows or batch_tokens, or raise memory_bytes in {execution.file}"
        require_memory(plan.memory_bytes, load_cluster(execution).memory_bytes, "a worker", cure)
    elif workers.n is not None:
        require_worker_memory(execution, plan.memory_bytes, workers.n)

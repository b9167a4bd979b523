"""What is looked at before workers that others started get their first unit: threads, memory, devices, versions."""

from collections.abc import Mapping

from distributed import Client

from pipelines.devices import gpu_count
from schemas.errors import FingerprintError, ResourceError
from schemas.execution import Execution
from tasks.versions import CURE, expected_versions, own_versions, skew


def check_threads(client: Client) -> None:
    """Refuse workers that run several units at a time: they would share one network and its hooks."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    several = {address: worker["nthreads"] for address, worker in workers.items() if worker["nthreads"] != 1}
    if several:
        address, threads = next(iter(several.items()))
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
            f"{len(without)} of {n_workers} workers at {execution.address or execution.file} see no CUDA device, "
            f"such as {without[0]}: set execution.device to cpu, or use workers of one kind"
        )
    return "cpu"


def check_memory(client: Client, needed_bytes: int) -> None:
    """Refuse workers with less memory than a unit needs, with both numbers."""
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        limit = worker["memory_limit"]
        if limit and limit < needed_bytes:
            raise ResourceError(
                f"a unit needs about {needed_bytes / 2**20:.0f} MiB, worker {address} has {limit / 2**20:.0f} MiB: "
                "lower store.shard_rows or batch_tokens, or start workers with more memory"
            )


def check_versions(client: Client, mix: bool) -> None:
    """Refuse workers with other versions than this process: jobs could not be read there, or bytes would differ.

    Dask itself warns of other versions at most. Those that join later are looked at by `tasks.versions.run_checked`.

    Args:
        client: of the workers.
        mix: look only at what jobs travel by.

    Raises:
        FingerprintError: naming one worker, its versions, ours, and how many are wrong.
    """
    expected = expected_versions(mix)
    answers = client.run(own_versions, on_error="return")
    wrong = {address: why for address, found in answers.items() if (why := _skew(expected, found))}
    if wrong:
        address, why = next(iter(wrong.items()))
        raise FingerprintError(
            f"worker {address} has {why} ({len(wrong)} of {len(answers)} workers differ): {CURE}"
        )


def _skew(expected: Mapping[str, str], found: Mapping[str, str] | BaseException) -> str:
    if isinstance(found, BaseException):
        return f"no code of this subspan ({type(found).__name__}: {found})"
    return skew(expected, found)

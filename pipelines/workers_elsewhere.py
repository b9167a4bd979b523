"""Workers that a cluster file describes: jobs of SLURM (dask-jobqueue) or pods of Kubernetes (the Dask operator)."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client

from pipelines.kube import kubernetes_cluster
from pipelines.slurm import slurm_cluster
from schemas.cluster import KubernetesCluster, SlurmCluster
from schemas.errors import ResourceError
from schemas.execution import Execution

LOST_SECONDS = "60s"
"""A job that has no worker for so long is given up, and another one put in its place."""


@contextmanager
def remote_cluster(
    found: SlurmCluster | KubernetesCluster, execution: Execution, threads: int
) -> Iterator[Any]:
    """A cluster as its file says, with the workers that the execution asks for; ended on the way out.

    Raises:
        ResourceError: if the scheduler of jobs or pods is not there or refuses; with what it said.
    """
    options = {
        "distributed.scheduler.allowed-failures": execution.retries,
        "distributed.deploy.lost-worker-timeout": LOST_SECONDS,
    }
    name = f"subspan-{uuid.uuid4().hex[:8]}"
    least, most = execution.least_workers, execution.workers or 1
    with dask.config.set(options):
        if isinstance(found, SlurmCluster):
            made = slurm_cluster(found, name, threads, least, most)
        else:
            made = kubernetes_cluster(found, name, threads, least, most)
        with made as cluster:
            yield cluster


def wait_for_first(client: Client, found: SlurmCluster | KubernetesCluster) -> None:
    """Wait for one worker; others may come while units run.

    Raises:
        ResourceError: if none came, with where to look.
    """
    try:
        client.wait_for_workers(1, timeout=found.wait_minutes * 60)
    except TimeoutError:
        look = (
            "`squeue --me`, and the logs below shared_directory"
            if found.kind == "slurm"
            else "`kubectl get pods`"
        )
        raise ResourceError(
            f"no worker came within {found.wait_minutes} minutes (wait_minutes): look at {look}; nothing was computed"
        ) from None

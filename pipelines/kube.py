"""Workers as pods of Kubernetes: a DaskCluster resource that the Dask operator makes pods of."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask

from pipelines.slurm import NO_PAUSE
from pipelines.workers_here import AT_ONCE, worker_environment
from schemas.cluster import KubernetesCluster
from schemas.errors import ResourceError

ALLOWED_FAILURES = "distributed.scheduler.allowed-failures"
SCHEDULER_BYTES = 1 << 30
IDLE_SECONDS = 3600
"""The operator ends a cluster that nobody uses for so long: a flow that was killed cannot."""


@contextmanager
def kubernetes_cluster(
    found: KubernetesCluster, name: str, threads: int, least: int | None, most: int
) -> Iterator[Any]:
    """Pods of Kubernetes, deleted on the way out.

    Raises:
        ResourceError: if Kubernetes or its Dask operator is not there or refuses; with what it said.
    """
    import kr8s
    from dask_kubernetes.operator import KubeCluster

    resource = dask_cluster(found, name, threads, least or most)
    try:
        kr8s.api(namespace=found.namespace).version()
        cluster = KubeCluster(
            namespace=found.namespace,
            custom_cluster_spec=resource,
            resource_timeout=found.wait_minutes * 60,
            quiet=True,
        )
    except Exception as error:
        raise ResourceError(
            f"Kubernetes made no cluster in namespace {found.namespace}: {type(error).__name__}: {error}; is there a kubeconfig, "
            "and the Dask operator (deploy/helm/README.md)?"
        ) from error
    with cluster:
        if least is not None:
            cluster.adapt(minimum=least, maximum=most)
        yield cluster


def dask_cluster(found: KubernetesCluster, name: str, threads: int, workers: int) -> dict[str, Any]:
    """The DaskCluster resource."""
    environment = {
        k: v for k, v in worker_environment(threads).items() if k != "PYTHONPATH"
    }  # the image has its own
    memory = str(found.memory_bytes)
    worker = ["dask", "worker", "--nthreads", "1", "--memory-limit", memory, "--nanny", "--no-dashboard"]
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": {
            "idleTimeout": IDLE_SECONDS,
            "worker": {
                "replicas": workers,
                "spec": _pod(
                    found,
                    "worker",
                    {
                        "args": [*worker, "--name", "$(DASK_WORKER_NAME)"],
                        "env": _env(environment | NO_PAUSE | found.environment),
                        "envFrom": [{"secretRef": {"name": secret}} for secret in found.secrets],
                        "resources": _resources(found.memory_bytes, threads, found.gpus),
                    },
                ),
            },
            "scheduler": {
                "spec": _pod(found, "scheduler", _scheduler()),
                "service": {"type": "ClusterIP", "selector": _selector(name), "ports": _service_ports()},
            },
        },
    }


def _pod(found: KubernetesCluster, role: str, container: dict[str, Any]) -> dict[str, Any]:
    mounts = {f"claim-{i}": pair for i, pair in enumerate(found.claims.items())} if role == "worker" else {}
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": found.user,
            "fsGroup": found.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": role,
                "image": found.image,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": name, "mountPath": path} for name, (_, path) in mounts.items()],
                **container,
            }
        ],
        "volumes": [
            {"name": name, "persistentVolumeClaim": {"claimName": claim}}
            for name, (claim, _) in mounts.items()
        ],
    }


def _scheduler() -> dict[str, Any]:
    health = {"httpGet": {"port": "http-dashboard", "path": "/health"}}
    as_here = {
        "DASK_DISTRIBUTED__ADAPTIVE__TARGET_DURATION": AT_ONCE,
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(dask.config.get(ALLOWED_FAILURES)),
    }
    return {
        "args": ["dask", "scheduler", "--host", "0.0.0.0"],
        "env": _env(as_here),
        "resources": _resources(SCHEDULER_BYTES, 1, 0),
        "ports": [
            {"name": "tcp-comm", "containerPort": 8786, "protocol": "TCP"},
            {"name": "http-dashboard", "containerPort": 8787, "protocol": "TCP"},
        ],
        "readinessProbe": health | {"periodSeconds": 2, "timeoutSeconds": 10},
        "livenessProbe": health | {"initialDelaySeconds": 30, "periodSeconds": 30, "timeoutSeconds": 10},
    }


def _service_ports() -> list[dict[str, Any]]:
    ports = {"tcp-comm": 8786, "http-dashboard": 8787}
    return [{"name": n, "protocol": "TCP", "port": port, "targetPort": n} for n, port in ports.items()]


def _selector(name: str) -> dict[str, str]:
    return {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}


def _env(environment: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": key, "value": value} for key, value in environment.items()]


def _resources(memory_bytes: int, cpus: int, gpus: int) -> dict[str, dict[str, str]]:
    asked = {"memory": str(memory_bytes), "cpu": str(cpus)}
    limits = {"memory": str(memory_bytes)} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"requests": asked, "limits": limits}

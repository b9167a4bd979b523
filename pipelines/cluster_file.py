"""A cluster file, read and checked: YAML to schema, with messages that name file, line, key and cure. Needs no Dask."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipelines.explain import KeyPath, dotted
from pipelines.runfile import describe, line_of, read_document, read_text
from schemas.cluster import ClusterFile, KubernetesCluster, SlurmCluster
from schemas.errors import ResourceError, SpecError
from schemas.execution import Execution
from schemas.urls import refuse_secret_options

NEEDED = {"slurm": ("dask_jobqueue", "dask-jobqueue"), "kubernetes": ("dask_kubernetes", "dask-kubernetes")}
"""Kind of cluster to the module that makes it, and its package."""
ADAPTER: TypeAdapter[SlurmCluster | KubernetesCluster] = TypeAdapter(ClusterFile)


def load_cluster(execution: Execution) -> SlurmCluster | KubernetesCluster:
    """The cluster that `execution.file` describes.

    Raises:
        NotFoundError: if there is no such file.
        SpecError: if it does not describe a cluster; one line per mistake.
        ResourceError: if the package that makes such a cluster is missing, or a GPU is asked for and its workers have none.
    """
    path = str(execution.file)
    document = read_document(read_text(Path(path), "cluster file"), path)
    if not isinstance(document.data, dict):
        raise SpecError(f"{path}: found {describe(document.data)}, expected a mapping with at least `kind`")
    try:
        cluster = ADAPTER.validate_python(document.data)
    except ValidationError as error:
        found = [_mistake(path, document.lines, detail["loc"], detail["msg"]) for detail in error.errors()]
        raise SpecError("\n".join(found)) from None
    refuse_secret_options(cluster.environment, f"{path}: environment")
    _check_package(cluster)
    if execution.device == "cuda" and not cluster.gpus:
        raise ResourceError(
            f"execution.device is cuda and workers of {path} have gpus: 0: set gpus there, or execution.device to cpu"
        )
    return cluster


def _mistake(path: str, lines: Mapping[KeyPath, int], location: tuple[str | int, ...], message: str) -> str:
    key: KeyPath = tuple(
        part for part in location if part not in NEEDED
    )  # pydantic names the branch of the union too
    return f"{path}:{line_of(key, lines)}: {dotted(key) or 'the whole file'}: {message}"


def _check_package(cluster: SlurmCluster | KubernetesCluster) -> None:
    module, package = NEEDED[cluster.kind]
    if importlib.util.find_spec(module) is None:
        raise ResourceError(
            f"a cluster of kind {cluster.kind} needs the package {package}, which is not installed: "
            f"pip install 'subspan[{cluster.kind}]' -c constraints.txt"
        )

"""The Prefect task of a group of stages that share one read: one call of a plain function."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import Artifact
from tasks.engine import run_stages


@task(name="stages", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def stages_task(label: str, **arguments: Any) -> dict[str, Artifact]:
    """See tasks.engine.run_stages."""
    return run_stages(**arguments)

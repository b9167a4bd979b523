"""The Prefect task of a capture: one call of a plain function."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.outcome import CaptureOutcome
from tasks.produce import run_capture


@task(name="capture", task_run_name="capture {label}", cache_policy=NO_CACHE, persist_result=False)
def capture_task(label: str, **arguments: Any) -> CaptureOutcome:
    """See tasks.produce.run_capture."""
    return run_capture(**arguments)

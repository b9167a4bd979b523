"""The Prefect task of the report: one call of a plain function."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.page import write_report


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def report_task(label: str, **arguments: Any) -> str:
    """See tasks.page.write_report."""
    return write_report(**arguments)

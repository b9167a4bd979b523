"""The flow of a whole run: it owns the cluster; captures and stages are Prefect tasks; units are Dask futures, or run in its threads.

Importing this module loads Prefect. `run_flow` is what the command line calls, `run` what a deployment calls.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from prefect import flow
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_LEVEL,
    get_current_settings,
    temporary_settings,
)

from pipelines.account import Account
from pipelines.cluster import DaskDriver, back_seconds, open_client, scheduler_page
from pipelines.devices import resolve_device
from pipelines.execute import execute, finished_again
from pipelines.forms import RunForm
from pipelines.forward import show_events
from pipelines.plan import Plan, make_plan
from pipelines.preflight import check_plan, workers_of
from pipelines.progress import Progress, Quiet
from pipelines.publish import LOST, PrefectProgress, publish_outcome
from pipelines.serial import own_driver, plan_serial
from pipelines.worker_checks import shared_device
from schemas.artifact import Artifact
from schemas.errors import StoreError, SubspanError
from schemas.outcome import CaptureOutcome, RunOutcome
from schemas.run import RunSpec
from tasks.capture import capture_task
from tasks.log import begin_log
from tasks.report import report_task
from tasks.stage import stages_task

LOG = logging.getLogger(__name__)
NO_SERVER = "Failed to reach API"
"""What Prefect says, as a plain RuntimeError, where there is no server when a flow begins."""


class PrefectSteps:
    """Each step is a Prefect task in the flow's process."""

    def capture(self, label: str, **arguments: Any) -> CaptureOutcome:
        """One capture."""
        made: CaptureOutcome = capture_task(label, **arguments)
        return made

    def stages(self, label: str, **arguments: Any) -> dict[str, Artifact]:
        """Stages that share a read."""
        made: dict[str, Artifact] = stages_task(label, **arguments)
        return made

    def report(self, label: str, **arguments: Any) -> str:
        """The page."""
        made: str = report_task(label, **arguments)
        return made


def execute_plan(plan: Plan, progress: Progress) -> RunOutcome:
    """Run a plan on the cluster that its execution asks for; inside a flow."""
    begin_log()
    show_events()
    done = finished_again(plan)
    if done is not None:
        return done
    check_plan(plan)  # before a cluster is started for what would be refused
    execution = plan.execution
    device = workers_of(plan).device or resolve_device(execution)
    account = Account(plan.run.name)
    if execution.cluster == "threads":
        with own_driver(plan, account) as driver:
            return execute(plan, driver, device, PrefectSteps(), progress, account=account)
    with open_client(execution, plan.threads, device, plan.memory_bytes) as client:
        if execution.cluster == "address":
            device = shared_device(client, execution)
        elif execution.cluster == "file":
            device = shared_device(client, execution.model_copy(update={"device": device}))
        page = scheduler_page(client)
        if page is not None:
            progress.link(*page)
        dask = DaskDriver(client, execution.window, execution.mix_fingerprints, back_seconds(execution))
        driver = account.measured(dask, dask.n_workers)
        return execute(plan, driver, device, PrefectSteps(), progress, account=account)


def carry_out(spec: RunSpec, check: Callable[[Plan], None] | None = None) -> RunOutcome:
    """Plan, execute and publish a run; inside a flow. What every deployment does.

    Args:
        spec: what to run.
        check: refuses plans that the flow does not make.
    """
    plan = plan_serial(spec) if spec.execution.cluster == "threads" else make_plan(spec)
    if check is not None:
        check(plan)
    outcome = execute_plan(plan, PrefectProgress())
    try:
        publish_outcome(outcome)
    except LOST as error:
        LOG.warning("%s", lost(outcome.root, error))
    return outcome


@flow(name="subspan-run", flow_run_name="{form.run_name}", persist_result=False)
def run(form: RunForm = RunForm()) -> dict[str, Any]:  # noqa: B008  the form needs its defaults in the schema
    """Capture a network's activations, find their subspaces, write the report."""
    return carry_out(form.run_spec()).model_dump(mode="json", exclude={"artifacts"})


def run_flow(plan: Plan, progress: Progress | None = None) -> RunOutcome:
    """Run from the command line, as a flow: on the server that PREFECT_API_URL names, or on a temporary one.

    A finished run needs no server and no cluster. A server that is lost at the end of a run takes nothing away: the outcome is returned.

    Raises:
        StoreError: if the server does not answer, and the run is not finished.
        SubspanError: see pipelines.execute.execute.
    """
    done = finished_again(plan)
    if done is not None:
        return done

    made: list[RunOutcome] = []

    @flow(name="subspan", flow_run_name="{name}", persist_result=False)
    def from_command_line(name: str, root: str) -> RunOutcome:
        # The plan is not a parameter: parameters go to the server, which takes half a megabyte.
        made.append(execute_plan(plan, progress or Quiet()))
        return made[0]

    with _quiet_prefect():
        try:
            return from_command_line(plan.run.name, plan.run.root)
        except (*LOST, RuntimeError) as error:
            if isinstance(error, RuntimeError) and NO_SERVER not in str(error):
                raise
            if not made:
                raise StoreError(lost(plan.run.root, error)) from error
            LOG.warning("%s", lost(plan.run.root, error))  # the store is the truth, and it has everything
            return made[0]


def lost(root: str, error: Exception) -> str:
    """What a server that stopped answering means for a run."""
    return (
        f"the Prefect server at {get_current_settings().api.url} does not answer ({error}) and has no record of how this run ended; "
        f"what is finished lies in {root}, and running again makes only what is missing. Start the server again, or unset PREFECT_API_URL"
    )


@contextmanager
def _quiet_prefect() -> Iterator[None]:
    logger = logging.getLogger("prefect.flow_runs")
    logger.addFilter(_in_words)
    try:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_LEVEL: "WARNING"}):
            yield
    finally:
        logger.removeFilter(_in_words)


def _in_words(record: logging.LogRecord) -> bool:
    """Drop what Prefect logs of a server that does not answer, and the traceback of a refusal: the command line tells both in words."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, SubspanError):
        record.exc_info = record.exc_text = None
    return not isinstance(error, LOST)

"""The same plan with neither Prefect nor Dask: for tests, debuggers and machines that have neither. And what work in the process
itself needs.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.account import Account
from pipelines.execute import execute, finished_again
from pipelines.plan import Plan, make_plan
from pipelines.preflight import workers_of
from pipelines.progress import Progress, Quiet
from schemas.outcome import CaptureOutcome, RunOutcome
from schemas.run import RunSpec
from tasks.drive import Driver, Threads, serial
from tasks.threads import thread_variables


class PlainSteps:
    """Each step is a plain call."""

    def capture(self, label: str, **arguments: Any) -> CaptureOutcome:
        """One capture."""
        from tasks.produce import run_capture

        return run_capture(**arguments)

    def stages(self, label: str, **arguments: Any) -> Any:
        """Stages that share a read."""
        from tasks.engine import run_stages

        return run_stages(**arguments)

    def report(self, label: str, **arguments: Any) -> str:
        """The page."""
        from tasks.page import write_report

        return write_report(**arguments)


def run_serial(run: RunSpec, progress: Progress | None = None) -> RunOutcome:
    """Run in this process; a finished run loads neither torch nor transformers and reads no shard."""
    return execute_serial(plan_serial(run), progress)


def plan_serial(run: RunSpec) -> Plan:
    """The plan of a run that this process will execute: torch loads with the threads of a worker."""
    set_threads(max(c.precision.threads for c in run.captures.values()))
    return make_plan(run)


def execute_serial(plan: Plan, progress: Progress | None = None) -> RunOutcome:
    """Run a plan in this process, on the device that the flow would choose on this machine.

    Raises:
        ResourceError: if this machine does not suffice; before anything is created.
    """
    done = finished_again(plan)
    if done is not None:
        return done
    device = workers_of(plan, serial=True).device or "cpu"
    account = Account(plan.run.name)
    with own_driver(plan, account) as driver:
        return execute(plan, driver, device, PlainSteps(), progress or Quiet(), serial=True, account=account)


@contextmanager
def own_driver(plan: Plan, account: Account) -> Iterator[Driver]:
    """Runs units in this process: in threads where the plan asks for them, else one after the other."""
    if plan.execution.cluster != "threads":
        yield account.measured(serial, lambda: 1)
        return
    n = workers_of(plan).n or 1
    with Threads(n) as driver:
        yield account.measured(driver, lambda: n)


def set_threads(threads: int) -> None:
    """Set the thread count before torch, BLAS and zarr load; results depend on it."""
    os.environ |= thread_variables(threads)
    loaded = sys.modules.get("torch")
    if loaded is not None:  # in a flow that a server started
        loaded.set_num_threads(threads)

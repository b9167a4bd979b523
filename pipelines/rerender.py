"""`subspan report`: the page of a finished run, made again from what is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.status import RunStatus, read_run
from schemas.errors import NotFoundError
from schemas.run import ReportOptions, RunSpec
from tasks.store.location import Location


def rerender_file(path: Path, overrides: Sequence[str] = ()) -> str:
    """The page of a run file whose captures and artifacts are all there; its URL.

    Raises:
        NotFoundError: if something of the run is not computed yet.
    """
    from pipelines.execute import finished_outcome, report_folder
    from pipelines.plan import make_plan
    from pipelines.runfile import load_run
    from tasks.page import PAGE, write_report

    plan = make_plan(load_run(path, overrides))
    bare = plan.model_copy(update={"run": plan.run.model_copy(update={"report": None})})
    outcome = finished_outcome(bare)
    if outcome is None:
        raise NotFoundError(
            f"{path}: the run is not finished, there is nothing to report; `subspan run {path}` first"
        )
    shown = plan.model_copy(update={"run": _with_report(plan.run)})
    folder = report_folder(shown) or f"reports/{plan.run.name}"
    return write_report(Location(plan.run.root), outcome, shown, f"{folder}/{PAGE}")


def rerender_run(root: Location, run: str) -> str:
    """The page of a recorded run, in its old place; its URL."""
    from tasks.page import PAGE, write_report

    record = read_run(root, run)
    shown = _Shown(_with_report(record.run))
    return write_report(
        root, record.outcome, shown, f"{_old_folder(root, record) or f'reports/{run}'}/{PAGE}"
    )


def _old_folder(root: Location, record: RunStatus) -> str:
    """Where the page was, below the root; empty where there was none, or the root has moved."""
    folder = (record.outcome.report or "").rpartition("/")[0]
    return folder.removeprefix(f"{root.url}/") if folder.startswith(f"{root.url}/") else ""


class _Shown(NamedTuple):
    """Stands for a plan, of which the page needs the run."""

    run: RunSpec


def _with_report(run: RunSpec) -> RunSpec:
    return run if run.report is not None else run.model_copy(update={"report": ReportOptions()})

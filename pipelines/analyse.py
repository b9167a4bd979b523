"""The flow that analyses only: the stages of a run, over captures that are sealed. No network runs for a capture here."""

from typing import Any

from prefect import flow

from pipelines.forms import AnalyseForm
from pipelines.plan import Plan
from pipelines.run import carry_out
from schemas.errors import NotFoundError

MOST_NAMED = 3
"""Missing captures that a refusal spells out."""


@flow(name="subspan-analyse", flow_run_name="{form.run_name}", persist_result=False)
def analyse(form: AnalyseForm = AnalyseForm()) -> dict[str, Any]:  # noqa: B008  the form needs its defaults in the schema
    """Run analyses over captures that are sealed, and write the report. Refuses to capture, and says what is missing."""
    return carry_out(form.run_spec(), check_captured).model_dump(mode="json", exclude={"artifacts"})


def check_captured(plan: Plan) -> None:
    """Refuse a plan that would capture.

    Raises:
        NotFoundError: if a capture is not sealed, with its id and how much of it there is.
    """
    missing = [capture for capture in plan.captures if not capture.sealed]
    if missing:
        told = [
            f"{c.name!r}{f' ({c.partition})' if c.partition else ''}: {c.units_done} of {c.n_units} units of {c.id}"
            for c in missing[:MOST_NAMED]
        ]
        more = f", and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise NotFoundError(
            f"{plan.run.root} has no sealed capture {', '.join(told)}{more}; analyse makes none. Run the deployment `capture` with the "
            "same fields or run file first; if they were there before, something that they depend on changed (weights, data, options)"
        )

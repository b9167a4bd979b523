"""The flow that captures only: the captures of a run, without its stages and its report."""

from typing import Any

from prefect import flow

from pipelines.forms import CaptureForm
from pipelines.run import carry_out


@flow(name="subspan-capture", flow_run_name="{form.run_name}", persist_result=False)
def capture(form: CaptureForm = CaptureForm()) -> dict[str, Any]:  # noqa: B008  the form needs its defaults in the schema
    """Capture a network's activations into sealed stores, and nothing else. What is sealed already is found, not made again."""
    return carry_out(form.capture_spec()).model_dump(mode="json", exclude={"artifacts"})

"""The flow that looks at new data: it scores them against a reference that is there, writes the artifacts, and tells what is new.

A run file is all that it takes; `watch: {sealed: [...]}` in it names what must be there already. It is run by a schedule, or by hand.
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event
from prefect.events.worker import EventsWorker

from pipelines.alerts import Raised, check_sealed, tell_new
from pipelines.forms import WatchForm
from pipelines.publish import artifact_key
from pipelines.run import carry_out
from pipelines.runfile import load_run
from schemas.errors import SubspanError

EVENT = "subspan.alert"
"""What automations listen to."""


@flow(name="subspan-watch", flow_run_name="{form.run_name}", persist_result=False)
def watch(form: WatchForm) -> dict[str, Any]:
    """Score new data against a sealed reference, write the artifacts, and send an event for every new alert."""
    outcome = carry_out(load_run(Path(form.run_file)), check_sealed)
    new = tell_new(outcome, send_event)
    if new:
        create_table_artifact(
            key=artifact_key("alerts", outcome.run),
            table=[_row(one) for one in new],
            description="New alerts",
        )
    return outcome.model_dump(mode="json", exclude={"artifacts"}) | {"alerts": [one.line for one in new]}


def send_event(one: Raised) -> None:
    """An event with the alert, under an id of its own, so that a second one is the same.

    Raises:
        SubspanError: if Prefect does not take it.
    """
    taken = emit_event(
        event=EVENT,
        resource={
            "prefect.resource.id": f"subspan.stage.{one.run}.{one.stage}",
            "prefect.resource.name": f"{one.run}: {one.stage}",
            "subspan.run": one.run,
            "subspan.stage": one.stage,
            "subspan.kind": one.alert.kind,
        },
        payload=one.model_dump(mode="json"),
        id=one.event_id,
    )
    if taken is None:
        raise SubspanError(
            f"Prefect did not take the event of the alert {one.line!r}; look at PREFECT_API_URL and its log, the next watch tells it again"
        )
    EventsWorker.instance().wait_until_empty()  # it is sent in the background, and told once it is on its way


def _row(one: Raised) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "site": one.place,
        "alert": one.alert.message,
        "value": one.alert.value,
        "threshold": one.alert.threshold,
        "artifact": one.artifact,
    }

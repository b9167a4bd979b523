"""The flow that looks at new data: it scores them against a reference that is there, writes the artifacts, and tells what is new.

A run file is all that it takes; `watch: {sealed: [...]}` in it names what must be there already. It is run by a schedule, or by hand.
"""

import asyncio
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.events.clients import get_events_client
from prefect.events.related import related_resources_from_run_context

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
    """An event with the alert, under an id of its own, so that a second one is the same; the server has it when this returns.

    Prefect's own `emit_event` sends in the background: a server that is lost there is only logged, or waited for without end.

    Raises:
        SubspanError: if Prefect does not take it.
    """
    event = Event(
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
    try:
        asyncio.run(_send(event))
    except Exception as error:
        raise SubspanError(
            f"Prefect did not take the event of the alert {one.line!r} ({type(error).__name__}: {error}); look at PREFECT_API_URL and its "
            "log, the next watch tells it again"
        ) from error


async def _send(event: Event) -> None:
    exclude = {resource.id for resource in event.involved_resources}
    async with get_client() as client:
        event.related += await related_resources_from_run_context(client=client, exclude=exclude)
    async with get_events_client(checkpoint_every=1) as events:  # each is answered
        await events.emit(event)


def _row(one: Raised) -> dict[str, Any]:
    return {
        "stage": one.stage,
        "site": one.place,
        "alert": one.alert.message,
        "value": one.alert.value,
        "threshold": one.alert.threshold,
        "artifact": one.artifact,
    }

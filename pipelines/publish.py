"""What a run shows in the Prefect UI: one progress artifact while it works, tables and the report link at the end."""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectHTTPStatusError

from schemas.outcome import CaptureOutcome, RunOutcome
from tasks.costs import costs_of

LOG = logging.getLogger(__name__)
LOST = (httpx.TransportError, PrefectHTTPStatusError)
"""What Prefect's client raises, after it tried for about a minute, where no server answers or one that is going down."""

UPDATE_SECONDS = 1.0


class PrefectProgress:
    """Progress of each step as an artifact, updated at most about once a second."""

    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._last = 0.0
        self._lost = False

    def link(self, text: str, url: str) -> None:
        """A link among the artifacts of the run."""
        with self._noticing_loss():
            create_link_artifact(link=url, link_text=text, key=artifact_key(text), description=text)

    def begin(self, label: str, total: int, done: int = 0) -> None:
        """A step starts."""
        self._total[label], self._done[label] = max(1, total), done
        if label not in self._artifacts and not self._lost:
            with self._noticing_loss():
                made = create_progress_artifact(
                    self._percent(label), key=artifact_key("progress", label), description=self._told(label)
                )
                if isinstance(made, UUID):
                    self._artifacts[label] = made

    def advance(self, label: str, tokens: int = 0) -> None:
        """One more unit is done."""
        self._done[label] += 1
        if time.monotonic() - self._last > UPDATE_SECONDS:
            self._send(label)

    def at(self, label: str, done: int, total: int) -> None:
        """So many units done, of those known so far."""
        self._done[label], self._total[label] = done, max(1, total)
        if time.monotonic() - self._last > UPDATE_SECONDS:
            self._send(label)

    def end(self, label: str) -> None:
        """The step is done."""
        self._done[label] = self._total[label]
        self._send(label)

    def _percent(self, label: str) -> float:
        return 100.0 * self._done[label] / self._total[label]

    def _told(self, label: str) -> str:
        return f"{label}: {self._done[label]} of {self._total[label]} done"

    def _send(self, label: str) -> None:
        self._last = time.monotonic()
        if label in self._artifacts and not self._lost:
            with self._noticing_loss():
                update_progress_artifact(
                    self._artifacts[label], progress=self._percent(label), description=self._told(label)
                )

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """A server that is lost stops no unit: what it would show is dropped, and it is not asked again."""
        try:
            yield
        except LOST as error:
            self._lost = True
            LOG.warning(
                "the Prefect server does not answer (%s): units go on, it shows no more progress", error
            )


def publish_outcome(outcome: RunOutcome) -> None:
    """Tables of captures and results, figures as Markdown pictures, and the link to the report."""
    create_table_artifact(
        key="captures",
        table=[_capture_row(capture) for capture in outcome.captures],
        description=f"Sealed captures of this run below {outcome.root}",
    )
    for stage in dict.fromkeys(a.stage for a in outcome.artifacts):
        rows = [{"site": a.place, **_rounded(a.result)} for a in outcome.artifacts if a.stage == stage]
        create_table_artifact(
            key=artifact_key("result", stage), table=rows, description=f"Results of {stage}, one row per site"
        )
    costs = costs_of(outcome)
    if costs is not None:
        create_table_artifact(
            key="work",
            table=[_rounded(step.model_dump()) for step in outcome.work],
            description="What each step took",
        )
        create_table_artifact(key="costs", table=[_rounded(costs._asdict())], description="What the run took")
    for failure in outcome.stage_failures:
        create_markdown_artifact(
            f"**{failure.stage}** at `{failure.site}` failed: {failure.reason}",
            key=artifact_key("failed", failure.stage),
        )
    if outcome.report is not None:
        publish_report(outcome.report)


def publish_report(url: str) -> None:
    """A link to the page, and its figures as pictures."""
    from base64 import b64encode

    from tasks.store.location import Location

    create_link_artifact(
        link=report_link(url),
        link_text="Open the report",
        key="report",
        description="Findings, figures, tables and limits of this run, on one page",
    )
    folder = Location(url.rsplit("/", 1)[0])
    for name in sorted(n for n in folder.ls("figures") if n.endswith(".png")):
        picture = b64encode(folder.read(f"figures/{name}")).decode()
        create_markdown_artifact(
            f"![{name}](data:image/png;base64,{picture})",
            key=artifact_key("figure", name.removesuffix(".png")),
            description="A figure of the report, which explains it",
        )


def report_link(url: str) -> str:
    """Where a browser finds the page: on the reports server, where there is one."""
    from prefect.settings import get_current_settings

    from pipelines.reports import URL, register

    if served := os.environ.get(URL):
        return served + register(get_current_settings().home, url)
    return url if "://" in url else f"file://{url}"


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def _capture_row(capture: CaptureOutcome) -> dict[str, object]:
    """Words and numbers only: the page of a table shows nothing else."""
    return {
        "name": capture.name,
        **({} if capture.partition is None else {"partition": capture.partition}),
        "rows": ", ".join(f"{rows:,} {space}" for space, rows in capture.rows.items()),
        "failed samples": len(capture.failures),
        "truncated samples": capture.truncated,
        "saturated values": sum(capture.saturated.values()),
        "now": "captured" if capture.computed else "found",
        "seconds": round(capture.seconds, 1),
        "id": capture.id,
    }


def _rounded(result: dict[str, object]) -> dict[str, object]:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in result.items()}

"""Alerts of a run's results, each told once: a file below `alerts/<run>/` is the proof that it was.

The file is written after the alert was told, or Prefect took its event, which is on its way then. A process that dies between both tells
it again under the same id.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from pipelines.plan import Plan
from schemas.alert import Alert
from schemas.base import Frozen, canonical_json, content_id
from schemas.errors import NotFoundError, UnknownNameError, nearest
from schemas.outcome import RunOutcome
from tasks.store.location import Location

FOLDER = "alerts"


class Raised(Frozen):
    """An alert, and whose it is."""

    run: str
    stage: str
    place: str
    artifact: str
    method: str
    alert: Alert

    @property
    def id(self) -> str:
        """The same for what is found again."""
        about = self.alert.key or self.artifact
        return content_id([self.run, self.stage, self.place, self.alert.kind, about])

    @property
    def event_id(self) -> UUID:
        """Of the event that tells it."""
        return uuid5(NAMESPACE_URL, f"subspan:{self.id}")

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.stage} at {self.place}: {self.alert.message}"


def raised(outcome: RunOutcome) -> list[Raised]:
    """All alerts of a run's artifacts, told before or not, which call captures by their names."""
    names = {
        c.id[:8]: c.name if c.partition is None else f"{c.name} / {c.partition}" for c in outcome.captures
    }
    return [
        Raised(
            run=outcome.run, stage=a.stage, place=a.place, artifact=a.id, method=a.method, alert=_named(alert, names)
        )
        for a in outcome.artifacts
        for alert in a.alerts
    ]  # fmt: skip


def _named(alert: Alert, names: Mapping[str, str]) -> Alert:
    """The same, where an artifact, which knows no names, has beginnings of captures' ids."""
    told = re.sub(r"\b[0-9a-f]{8}\b", lambda found: names.get(found[0], found[0]), alert.message)
    return alert.model_copy(update={"message": told})


def untold(outcome: RunOutcome) -> list[Raised]:
    """The alerts of a run's artifacts that were not told before."""
    there = set(Location(outcome.root).ls(f"{FOLDER}/{outcome.run}"))
    return list({one.id: one for one in raised(outcome) if f"{one.id}.json" not in there}.values())


def keep_told(outcome: RunOutcome, one: Raised) -> None:
    """Keep that an alert was told.

    Raises:
        StoreError: if the storage refuses.
    """
    record = one.model_dump(mode="json") | {"told": datetime.now(UTC).isoformat(timespec="seconds")}
    Location(outcome.root).write(f"{FOLDER}/{outcome.run}/{one.id}.json", canonical_json(record))


def tell_new(outcome: RunOutcome, tell: Callable[[Raised], None]) -> list[Raised]:
    """Tell the alerts that were not told before, and keep that they were.

    Raises:
        StoreError: if the storage refuses.
    """
    new = untold(outcome)
    for one in new:
        tell(one)
        keep_told(outcome, one)
    return new


def check_sealed(plan: Plan) -> None:
    """Refuse a watch whose reference would be made, or made anew.

    Raises:
        UnknownNameError: if a name that must be sealed is of no capture or stage of the run.
        NotFoundError: if what has the name is not there, with the ids that are wanted.
    """
    wanted = plan.run.watch.sealed if plan.run.watch else ()
    names: Sequence[str] = [c.name for c in plan.captures] + [s.name for s in plan.stages]
    for name in wanted:
        if name not in names:
            raise UnknownNameError(
                f"watch.sealed: the run has no capture or stage {name!r}; nearest: {nearest(name, names)}"
            )
        missing = [f"capture {c.id}" for c in plan.captures if c.name == name and not c.sealed]
        missing += [f"artifact {s.id} at {s.place}" for s in plan.stages if s.name == name and not s.done]
        if missing:
            raise NotFoundError(
                f"watch.sealed: {name!r} is not there: {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}; a watch makes "
                "no reference. Make it with `subspan run`; if it was there before, something that it depends on changed (weights, data, "
                "options or a method's version)"
            )

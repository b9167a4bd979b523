"""What may be removed below a root, and its removal: nothing that something else was made from, that a name opens, or that somebody is at
work on.

What makes a capture or artifact readable (manifest, `artifact.json`) goes first, so that whatever dies in the middle leaves nothing that
looks whole, and removing again goes on.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Literal

from pipelines.status import capture_ids, read_run, run_ids
from schemas.artifact import Artifact
from schemas.base import Frozen, canonical_json
from schemas.errors import OccupiedError, SubspanError
from tasks.store.artifacts import list_artifacts, read_artifact
from tasks.store.lease import current_lease, hold, is_dead
from tasks.store.location import Location
from tasks.store.names import NAMES, name_path, read_names
from tasks.store.paths import (
    RUNS,
    STATES,
    artifact_path,
    artifact_receipts_path,
    capture_path,
    lease_path,
    manifest_path,
    receipts_path,
)

Kind = Literal["capture", "artifact", "run", "report"]
MISSED = 6
"""Beats without a sign of life after which a lease counts as dead."""
MOST_NAMED = 5


class Removal(Frozen):
    """Something that goes."""

    kind: Kind
    id: str
    bytes: int
    why: str
    """In a few words."""


class Holdings:
    """What lies below a root, and what was made from what."""

    def __init__(self, root: Location) -> None:
        self.root = root

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """Finished ones that can be read."""
        found = {}
        for name in list_artifacts(self.root):
            try:
                found[name] = read_artifact(self.root, name)
            except SubspanError:  # damaged: nothing is known of it, and it is in nobody's way
                continue
        return found

    @cached_property
    def made_from(self) -> dict[str, set[str]]:
        """Artifact to the captures and artifacts that it was made from."""
        return {
            name: set(a.stage.needs) | {capture for capture, _ in a.stage.places}
            for name, a in self.artifacts.items()
        }

    def dependents(self, targets: Sequence[str]) -> list[str]:
        """Artifacts that were made from some things, at any remove, each before what it was made from."""
        found, wanted = set[str](), set(targets)
        while new := {a for a, needs in self.made_from.items() if needs & wanted} - found:
            found, wanted = found | new, new
        return self.last_first(found - set(targets))

    def last_first(self, artifacts: Iterable[str]) -> list[str]:
        """The same, each before what it was made from."""
        order = [name for name in TopologicalSorter(self.made_from).static_order() if name in set(artifacts)]
        return order[::-1]

    def needed(self, artifacts: Sequence[str]) -> set[str]:
        """These, and everything that they were made from."""
        found: set[str] = set()
        waiting = list(artifacts)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.made_from.get(name, ())
        return found


def removals(
    root: Location, targets: Sequence[tuple[str, str]], dependents: bool, names: bool
) -> list[Removal]:
    """Some captures, artifacts and records of runs, in the order in which they go.

    Args:
        root: where they lie.
        targets: kind and id of each, from `status.find`.
        dependents: whether artifacts that were made from them go too.
        names: whether captures go that a name opens, with the name.

    Raises:
        OccupiedError: if one is needed, has a name, or is worked on.
    """
    holdings, ids = Holdings(root), [name for _, name in targets]
    others = holdings.dependents(ids)
    if others and not dependents:
        raise OccupiedError(
            f"artifacts that are there were made from what is to go: {_listed(others)}; remove them too with --dependents, or first"
        )
    captures = [name for kind, name in targets if kind == "capture"]
    called = [name for name, capture in read_names(root).items() if capture in captures]
    if called and not names:
        raise OccupiedError(
            f"names open what is to go: {_listed(called)}; remove them too with --names, or run the file again, which points them elsewhere"
        )
    for capture in captures:
        _refuse_held(root, capture)
    found = [
        Removal(kind="artifact", id=a, bytes=_bytes(root, "artifact", a), why="dependent") for a in others
    ]
    order: dict[str, int] = {"run": 0, "artifact": 1, "capture": 2}
    last_first = holdings.last_first(ids)
    own = sorted(targets, key=lambda t: (order[t[0]], last_first.index(t[1]) if t[1] in last_first else 0))
    return found + [
        Removal.model_validate({"kind": kind, "id": name, "bytes": _bytes(root, kind, name), "why": "named"})
        for kind, name in own
    ]


def garbage(root: Location) -> list[Removal]:
    """What no name opens, and no last record of a run has or needs: artifacts, reports and captures, in the order in which they go.

    Things that are not finished are left: somebody may be at work on them.
    """
    holdings = Holdings(root)
    records = (read_run(root, name) for name in run_ids(root))
    last = {record.run.name: record.outcome for record in records}
    kept = holdings.needed([a.id for outcome in last.values() for a in outcome.artifacts])
    kept |= set(read_names(root).values()) | {c.id for outcome in last.values() for c in outcome.captures}
    pages = {outcome.report.rsplit("/", 2)[-2] for outcome in last.values() if outcome.report}
    gone = holdings.last_first(set(holdings.artifacts) - kept)
    sealed = [c for c in capture_ids(root) if root.exists(manifest_path(c)) and c not in kept]
    found: list[tuple[Kind, str]] = [("artifact", a) for a in gone]
    found += [("report", page) for page in root.ls("reports") if page not in pages]
    found += [("capture", c) for c in sealed if not _held(root, c)]
    return [
        Removal(
            kind=kind, id=name, bytes=_bytes(root, kind, name), why="in no last run, and no name opens it"
        )
        for kind, name in found
    ]


def remove(root: Location, going: Sequence[Removal]) -> Iterator[Removal]:
    """Remove them in order; each comes when it is gone.

    Raises:
        LeaseError: if somebody began to work on a capture meanwhile.
        StoreError: if the storage refuses.
    """
    for one in going:
        if one.kind == "capture":
            with hold(root, one.id):
                _forget_name(root, one.id)
                _delete(root, _places("capture", one.id))
                for state in root.ls(STATES.rstrip("/")):
                    root.delete(f"{STATES}{state}/{one.id}", recursive=True)
        else:
            _delete(root, _places(one.kind, one.id))
        yield one


def _places(kind: str, name: str) -> list[str]:
    """Files and folders, what makes it readable first."""
    places: Mapping[str, list[str]] = {
        "capture": [manifest_path(name), capture_path(name), receipts_path(name)],
        "artifact": [
            f"{artifact_path(name)}/artifact.json",
            artifact_path(name),
            artifact_receipts_path(name),
            f"{STATES}rows/{name}",
        ],
        "run": [f"{RUNS}/{name}.json"],
        "report": [f"reports/{name}"],
    }
    return places[kind]


def _delete(root: Location, places: Sequence[str]) -> None:
    for place in places:
        root.delete(place, recursive=True)


def _bytes(root: Location, kind: str, name: str) -> int:
    return sum((root.size(place) or 0) + sum(root.walk(place).values()) for place in _folders(kind, name))


def _folders(kind: str, name: str) -> list[str]:
    """Places of which none lies in another."""
    return [place for place in _places(kind, name) if not place.endswith("artifact.json")]


def _refuse_held(root: Location, capture: str) -> None:
    if (holder := _held(root, capture)) is not None:
        raise OccupiedError(f"capture {capture} is being worked on by {holder}; wait until it ends")


def _held(root: Location, capture: str) -> str | None:
    """Who is at work on it."""
    if not root.ls(lease_path(capture)):
        return None
    number, record = current_lease(root, capture)
    if not number or is_dead(root, capture, number, record, MISSED):
        return None
    return record.holder if record is not None else None


def _forget_name(root: Location, capture: str) -> None:
    """Take a capture out of what names open."""
    for file in (name for name in root.ls(NAMES) if name.endswith(".json")):
        path = name_path(file.removesuffix(".json"))
        pointer = json.loads(root.read(path))
        if pointer.get("capture") == capture:
            root.delete(path)
        elif capture in pointer.get("partitions", {}).values():
            left = {part: i for part, i in pointer["partitions"].items() if i != capture}
            if left:
                root.write(path, canonical_json({"partitions": left}))
            else:
                root.delete(path)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more

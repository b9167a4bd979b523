"""What lies below a root, read from files alone: no server, no cluster, no torch, no array is opened."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from pipelines.pace import Pace, pace_of
from schemas.artifact import Artifact
from schemas.base import Frozen
from schemas.capture import CaptureSpec
from schemas.errors import NotFoundError, SpecError, SubspanError, UnknownNameError, nearest
from schemas.outcome import RunOutcome
from schemas.receipts import Failure
from schemas.run import RunSpec
from tasks.store.artifacts import list_artifacts, read_artifact
from tasks.store.capture_spec import read_spec
from tasks.store.lease import current_lease
from tasks.store.location import Location
from tasks.store.manifest import is_sealed, read_manifest
from tasks.store.names import read_names
from tasks.store.paths import CAPTURES, RUNS, all_units, capture_path
from tasks.store.receipts import read_receipts

T = TypeVar("T")
_FOLDER = ".zarr"
SHORTEST_PREFIX = 4


class CaptureStatus(Frozen):
    """A capture, sealed or not."""

    id: str
    names: tuple[str, ...] = ()
    """What run files call it."""
    sealed: bool
    units: int
    units_done: int
    model: str
    data: str
    partition: str | None
    samples: int
    sites: int
    rows: dict[str, int]
    """Row space to rows."""
    bytes: int
    """Of the finished units' files."""
    failures: tuple[Failure, ...]
    holder: str | None
    """Who is at work on it, by its lease."""
    pace: Pace | None = None
    """Of the units that are done."""


class ArtifactStatus(Frozen):
    """A finished artifact."""

    id: str
    method: str
    sites: tuple[str, ...]
    captures: tuple[str, ...]
    rows: int
    seconds: float
    finished: str


class RunStatus(Frozen):
    """A recorded run."""

    id: str
    run: RunSpec
    outcome: RunOutcome


class RootStatus(Frozen):
    """Everything below a root."""

    root: str
    captures: tuple[CaptureStatus, ...]
    artifacts: tuple[ArtifactStatus, ...]
    runs: tuple[RunStatus, ...]
    damaged: dict[str, str] = Field(default_factory=dict)
    """What cannot be read, and why; the rest is listed all the same."""


def root_status(root: Location) -> RootStatus:
    """All captures, artifacts and runs. Costs a few small reads for each, and one per receipt."""
    damaged: dict[str, str] = {}

    def readable(names: Sequence[str], read: Callable[[str], T]) -> tuple[T, ...]:
        found: list[T] = []
        for name in names:
            try:
                found.append(read(name))
            except (SubspanError, ValueError, KeyError) as error:
                damaged[name] = str(error)
        return tuple(found)

    names = read_names(root)
    return RootStatus(
        root=root.url,
        captures=readable(capture_ids(root), lambda name: capture_status(root, name, names)),
        artifacts=readable(list_artifacts(root), lambda name: artifact_status(read_artifact(root, name))),
        runs=readable(run_ids(root), lambda name: read_run(root, name)),
        damaged=damaged,
    )


def capture_ids(root: Location) -> list[str]:
    """Ids of all captures that were begun, sorted."""
    names = [name.removesuffix(_FOLDER) for name in root.ls(CAPTURES) if name.endswith(_FOLDER)]
    return sorted(name for name in names if root.exists(f"{capture_path(name)}/zarr.json"))


def run_ids(root: Location) -> list[str]:
    """Names of all recorded runs, oldest first."""
    return sorted(name.removesuffix(".json") for name in root.ls(RUNS) if name.endswith(".json"))


def capture_status(root: Location, capture: str, names: Mapping[str, str] | None = None) -> CaptureStatus:
    """How far a capture is, and what it is called (`names` are those of the root, read where they are not given)."""
    spec = read_spec(root, capture)
    sealed = is_sealed(root, capture)
    receipts = read_receipts(root, capture)
    failures = read_manifest(root, capture).failures if sealed else ()
    _, lease = current_lease(root, capture)
    units = [unit.name for unit in all_units(spec)]
    called = (read_names(root) if names is None else names).items()
    return CaptureStatus(
        id=capture,
        names=tuple(sorted(name for name, known in called if known == capture)),
        sealed=sealed,
        units=len(units),
        units_done=sum(name in receipts for name in units),
        model=model_name(spec),
        data=spec.request.data.source.kind,
        partition=spec.partition,
        samples=spec.layout.n_samples,
        sites=len(spec.layout.sites),
        rows={space.name: space.n_rows for space in spec.layout.spaces},
        bytes=sum(receipt.written_bytes for receipt in receipts.values()),
        failures=failures,
        holder=lease.holder if lease is not None else None,
        pace=pace_of(receipts.values()),
    )


def model_name(spec: CaptureSpec) -> str:
    """What a user calls the network."""
    model = spec.request.model
    return str(getattr(model, "name", None) or getattr(model, "factory", model.kind))


def artifact_status(artifact: Artifact) -> ArtifactStatus:
    """One line of an artifact."""
    places = artifact.stage.places
    return ArtifactStatus(
        id=artifact.id,
        method=artifact.stage.method,
        sites=tuple(dict.fromkeys(site for _, site in places)),
        captures=tuple(dict.fromkeys(capture for capture, _ in places)),
        rows=artifact.rows_used,
        seconds=artifact.seconds,
        finished=artifact.finished,
    )


def read_run(root: Location, run: str) -> RunStatus:
    """A recorded run.

    Raises:
        NotFoundError: if there is none of that name; lists the nearest.
        SpecError: if the record is not one.
    """
    path = f"{RUNS}/{run}.json"
    try:
        record = json.loads(root.read(path))
        return RunStatus(id=run, run=record["run"], outcome=record["outcome"])
    except NotFoundError:
        close = nearest(run, run_ids(root))
        raise NotFoundError(f"{root.url} holds no run {run!r}; nearest: {close}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{root.url}/{path} is no record of a run ({error}); remove it") from None


def find(root: Location, name: str) -> tuple[str, str]:
    """What a capture's name, an id, or its first letters mean.

    Returns:
        `capture`, `artifact` or `run`, and the full id.

    Raises:
        UnknownNameError: if nothing or more than one thing begins like that.
    """
    every = [("capture", i) for i in capture_ids(root)]
    every += [("artifact", i) for i in list_artifacts(root)]
    every += [("run", i) for i in run_ids(root)]
    exact = [entry for entry in every if entry[1] == name]
    begins = [entry for entry in every if entry[1].startswith(name)] if len(name) >= SHORTEST_PREFIX else []
    names = read_names(root)
    called = [("capture", i) for known, i in names.items() if known == name or known.startswith(f"{name}/")]
    found = exact or called or begins
    if len(found) == 1:
        return found[0]
    raise UnknownNameError(_not_one(root, name, found, [*names, *(i for _, i in every)]))


def _not_one(root: Location, name: str, found: Sequence[tuple[str, str]], every: Sequence[str]) -> str:
    if found:
        ids = ", ".join(i for _, i in found[:5])
        return f"{name!r} begins {len(found)} ids below {root.url}: {ids}; give more letters"
    within = [one for one in every if name in one]  # as the name of a run is in its id
    return (
        f"{root.url} holds nothing called {name!r}; nearest: {nearest(name, within or every)}. "
        "`subspan ls` lists everything, --root names another place"
    )


def describe(root: Location, kind: str, name: str) -> dict[str, Any]:
    """Everything known of a capture, artifact or run, as plain JSON."""
    if kind == "capture":
        status = capture_status(root, name).model_dump(mode="json")
        return {**status, "spec": read_spec(root, name).model_dump(mode="json")}
    if kind == "artifact":
        return read_artifact(root, name).model_dump(mode="json")
    return read_run(root, name).model_dump(mode="json")

"""How artifacts were made, and which samples they have in common."""

from collections.abc import Sequence

import numpy as np

from schemas.artifact import Artifact
from schemas.base import content_id
from schemas.data import Source as DataSource
from schemas.stage import ResolvedStage
from tasks.engine.reduction import artifact_ports
from tasks.methods.contract import Made, MadeOver, load_method
from tasks.store.artifacts import read_artifact
from tasks.store.capture_spec import read_spec
from tasks.store.location import Location
from tasks.store.sample_table import read_sources


def how_made(
    root: Location, artifact: Artifact, allowed: tuple[str, ...] = (), over: MadeOver | None = None
) -> Made:
    """What a method may know of how an artifact was made.

    Raises:
        NotFoundError: if what came with its rows is not there any more.
    """
    stage = artifact.stage
    first = next(iter(stage.rows.values()), ())
    return Made(
        method=stage.method,
        version=stage.version,
        config=stage.config,
        site=first[0].site if first else "",
        captures=tuple(ref.capture for ref in first),
        reads=_reads(root, stage, allowed),
        over=over,
    )


def reference_captures(root: Location, artifact: Artifact, allowed: tuple[str, ...] = ()) -> set[str]:
    """Captures from which the artifacts that a stage reads were made, at any remove; one whose arrays come with the rows is left out, what
    it read is not.

    Raises:
        NotFoundError: if one of them is not there any more.
    """
    stage, found = artifact.stage, set[str]()
    with_rows = set(_with_rows(stage, allowed).values())
    for needed in stage.needs:
        other = read_artifact(root, needed)
        if needed not in with_rows:
            found |= {capture for capture, _ in other.stage.places}
        found |= reference_captures(root, other, allowed)
    return found


def common_samples(root: Location, captures: Sequence[str], others: Sequence[str]) -> int:
    """Samples of some captures that others have too: rows of sources of data that are named alike."""
    count, origins = 0, {other: _origin(root, other) for other in others}
    for capture in captures:
        own = _origin(root, capture)
        alike = [other for other, origin in origins.items() if origin == own]
        if alike:  # of others no table is read
            used = np.concatenate([read_sources(root, other) for other in alike])
            count += int(np.isin(read_sources(root, capture), used).sum())
    return count


def _origin(root: Location, capture: str) -> tuple[DataSource, str | None]:
    """The source of a capture's data, and the part of it."""
    spec = read_spec(root, capture)
    return spec.request.data.source, spec.partition


def _reads(root: Location, stage: ResolvedStage, allowed: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {port: (ref.artifact,) for port, ref in stage.artifacts.items()}
    found |= {port: tuple(ref.artifact for ref in refs) for port, refs in stage.series.items()}
    own: dict[str, list[str]] = {}
    for name, artifact in _with_rows(stage, allowed).items():
        other = read_artifact(root, artifact).stage
        own.setdefault(name.partition(".")[0], []).append(
            content_id([other.method, other.version, other.config])
        )
        found |= {f"{name}.{port}": ids for port, ids in _reads(root, other, allowed).items()}
    return found | {port: tuple(ids) for port, ids in own.items()}


def _with_rows(stage: ResolvedStage, allowed: tuple[str, ...]) -> dict[str, str]:
    """Ports to their artifacts of the stage's own rows; of those that take several, with a number."""
    module = load_method(stage.method, allowed)
    own = [name for name, port in artifact_ports(module).items() if port.aligned or port.own_rows]
    one = {name: stage.artifacts[name].artifact for name in own if name in stage.artifacts}
    several = ((name, stage.series[name]) for name in own if name in stage.series)
    return one | {f"{name}.{n}": ref.artifact for name, refs in several for n, ref in enumerate(refs)}

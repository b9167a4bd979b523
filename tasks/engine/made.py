"""How artifacts were made, and which samples they have in common."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from schemas.artifact import Artifact
from schemas.base import content_id
from schemas.data import Source as DataSource
from schemas.stage import ResolvedStage
from tasks.methods.contract import ArtifactPort, Made, MadeOver, load_method
from tasks.store.artifacts import read_artifact
from tasks.store.location import Location
from tasks.store.sample_table import read_samples
from tasks.store.samples import read_spec


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
    with_rows = {stage.artifacts[port].artifact for port in _aligned(stage, allowed)}
    for needed in stage.needs:
        other = read_artifact(root, needed)
        if needed not in with_rows:
            found |= {capture for capture, _ in other.stage.places}
        found |= reference_captures(root, other, allowed)
    return found


def common_samples(root: Location, captures: Sequence[str], others: Sequence[str]) -> int:
    """Samples of some captures that others have too: rows of sources of data that are named alike."""
    theirs = [_samples(root, capture) for capture in others]
    count = 0
    for ours in (_samples(root, capture) for capture in captures):
        used = [other.rows for other in theirs if other[:2] == ours[:2]]
        count += int(np.isin(ours.rows, np.concatenate(used)).sum()) if used else 0
    return count


class _Samples(NamedTuple):
    """Of a capture, as rows of their source."""

    source: DataSource
    partition: str | None
    rows: np.ndarray


def _samples(root: Location, capture: str) -> _Samples:
    spec, table = read_spec(root, capture), read_samples(root, capture)
    rows = np.arange(len(table.keys)) if table.source_index is None else table.source_index
    return _Samples(spec.request.data.source, spec.partition, rows)


def _reads(root: Location, stage: ResolvedStage, allowed: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {port: (ref.artifact,) for port, ref in stage.artifacts.items()}
    found |= {port: tuple(ref.artifact for ref in refs) for port, refs in stage.series.items()}
    for port in _aligned(stage, allowed):
        other = read_artifact(root, stage.artifacts[port].artifact).stage
        found[port] = (content_id([other.method, other.version, other.config]),)
        found |= {f"{port}.{name}": ids for name, ids in _reads(root, other, allowed).items()}
    return found


def _aligned(stage: ResolvedStage, allowed: tuple[str, ...]) -> list[str]:
    """Ports whose artifacts come with the rows."""
    ports = load_method(stage.method, allowed).READS
    return [name for name, port in ports.items() if isinstance(port, ArtifactPort) and port.aligned]

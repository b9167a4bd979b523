"""Row-aligned arrays of artifacts, read with the rows that they belong to: never more of them than of the rows.

What a map or pairs method gave each row lies in the grid of the rows. Rows that are left out of a block, because their samples
failed or because they have no partner, are left out of the arrays too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from schemas.artifact import Artifact
from schemas.errors import MethodError
from schemas.stage import ResolvedStage, RowsRef
from tasks.engine.source import Part, Rows, Source
from tasks.methods.contract import ArtifactPort, load_method
from tasks.store.artifacts import open_arrays, read_artifact
from tasks.store.location import Location

ROW = "row"
"""First axis of what is aligned with rows."""


class _Array(NamedTuple):
    """An array of one capture's rows."""

    port: str
    name: str
    values: Any


class AlignedSource:
    """A source whose rows come with the row-aligned arrays of artifacts over the same captures.

    Args:
        source: of the rows; where two ports are joined, arrays belong to the rows of the first.
        root: where artifacts lie.
        artifacts: port to the artifact that it takes.
    """

    def __init__(self, source: Source, root: Location, artifacts: Mapping[str, str]) -> None:
        self.source, self.root, self.artifacts = source, root, dict(artifacts)

    @property
    def parts(self) -> Sequence[Part]:
        """See `Source`."""
        return self.source.parts

    @property
    def widths(self) -> tuple[int, ...]:
        """See `Source`."""
        return self.source.widths

    @property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """See `Source`."""
        return self.source.shapes

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """See `Source`."""
        return self.source.categories

    @property
    def of_rows(self) -> tuple[str, ...]:
        """See `Source`."""
        return self.source.of_rows

    @property
    def refs(self) -> tuple[tuple[RowsRef, ...], ...]:
        """See `Source`."""
        return self.source.refs

    def good_samples(self, part: int, start: int, stop: int) -> np.ndarray:
        """See `Source`."""
        return self.source.good_samples(part, start, stop)

    def n_ok(self, part: int, start: int, stop: int) -> int:
        """See `Source`."""
        return self.source.n_ok(part, start, stop)

    def part_rows(self, part: int, start: int, stop: int) -> Rows:
        """See `Source`."""
        rows = self.source.part_rows(part, start, stop)
        found: dict[str, dict[str, np.ndarray]] = {port: {} for port in self.artifacts}
        for array in self._arrays[part]:
            values = np.asarray(array.values[start:stop])
            whole = len(rows.index) == len(values)
            found[array.port][array.name] = values if whole else values[rows.index - start]
        return replace(rows, aligned=found)

    @cached_property
    def _arrays(self) -> list[list[_Array]]:
        """Of each part, opened and not read."""
        groups: dict[str, Any] = {port: open_arrays(self.root, a) for port, a in self.artifacts.items()}
        records = {port: read_artifact(self.root, a) for port, a in self.artifacts.items()}
        several = len(self.parts) > 1
        return [
            [
                _Array(port, name.removeprefix(prefix), groups[port][name])
                for port, record in records.items()
                for name, info in record.arrays.items()
                if name.startswith(prefix) and info.dims[:1] == (ROW,) and info.shape[0] == part.space.n_rows
            ]
            for part in self.parts
            for prefix in [f"{part.ref.capture}/" if several else ""]
        ]


def check_aligned(
    stage: ResolvedStage, name: str, port: ArtifactPort, artifact: Artifact, allowed: tuple[str, ...] = ()
) -> None:
    """Refuse an artifact whose rows are not those of a stage.

    Args:
        stage: that reads the artifact.
        name: of its port.
        port: what the port takes.
        artifact: what is connected.
        allowed: packages outside the project whose methods may run.

    Raises:
        MethodError: naming both, if captures, their order or sites differ, or if the maker gives rows nothing and is not among the port's
            `others`.
    """
    gives_rows = load_method(artifact.stage.method, allowed).KIND in ("map", "pairs")
    if not gives_rows and artifact.stage.method not in port.others:
        raise MethodError(
            f"{stage.method}, port {name!r}: {artifact.stage.method} gives rows nothing, only map and pairs methods do; read its "
            "artifact whole"
        )
    rows_port, ours = next(iter(stage.rows.items()))
    if len(artifact.stage.rows) > 1:
        raise MethodError(
            f"{stage.method}, port {name!r}: artifact {artifact.id} was made over joined rows, of which some may be missing; "
            "connect one of a single port of rows"
        )
    theirs = next(iter(artifact.stage.rows.values()))
    if theirs != ours:
        raise MethodError(
            f"{stage.method}: port {rows_port!r} reads {_named(ours)}, but the artifact at port {name!r} was made over "
            f"{_named(theirs)}; expected the same captures in the same order, at the same site: connect the artifact of those "
            "rows, or make it for these"
        )


def _named(refs: Sequence[RowsRef]) -> str:
    return " + ".join(ref.label for ref in refs)

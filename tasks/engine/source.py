"""The rows that a port takes: one site of one or several sealed captures, read as one. NumPy only.

Rows of failed samples are left out of everything that is read. Rows are named in two ways: by their index in
their own capture (`part_rows`, what saved states of a capture refer to), and by their index when the captures
are laid end to end (`read`, what row-aligned outputs refer to).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from schemas.capture import CaptureSpec
from schemas.errors import DamageError, MethodError
from schemas.layout import SiteLayout, Space
from schemas.stage import NETWORK, RowsRef
from tasks.engine.decoded import DecodedRows
from tasks.engine.fitting import check_tokens, check_widths, merged_categories, site_layout
from tasks.engine.tokens import token_labels
from tasks.store.location import Location
from tasks.store.sample_table import Labels, read_keys, read_labels
from tasks.store.sealed import open_group

COLUMN_SHARDS, COLUMN_ROWS = 16, 1 << 18
"""Shards whose samples and positions are read at once, and most rows of them."""


@dataclass(frozen=True)
class Rows:
    """Some rows, in order, of samples that did not fail."""

    values: tuple[np.ndarray, ...]
    """One [row, feature] array per port, in the stored dtype."""
    sample: np.ndarray
    """int64 [row]"""
    position: np.ndarray
    """int64 [row]"""
    index: np.ndarray
    """int64 [row]"""
    labels: Mapping[str, np.ndarray]
    """Label name -> int64 codes or float64 numbers [row]."""
    network: "Part | None" = None
    """The capture whose network goes with the rows, where a port takes it."""
    aligned: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """Artifact port -> name of an array -> [row] or [row, ...]."""


class Part:
    """One capture's share of a source. Arrays of samples are read at first use and kept."""

    def __init__(self, root: Location, ref: RowsRef) -> None:
        self.root, self.ref = root, ref
        self.group: Any = open_group(root, ref.capture)
        self._opened: dict[str, Any] = {}
        self._columns: dict[str, tuple[int, np.ndarray]] = {}
        self.spec: CaptureSpec = CaptureSpec.model_validate(self.group.attrs["spec"])
        if ref.site != NETWORK:
            self.layout: SiteLayout = site_layout(self.spec, ref)
            self.space: Space = self.spec.layout.space(self.layout.space)
        self._decoded = DecodedRows(root, ref, self.space) if ref.codes else None

    @property
    def keeps_rows(self) -> bool:
        """Whether rows were stored; False where the capture kept states only."""
        return self.spec.request.keep == "rows"

    @cached_property
    def ok(self) -> np.ndarray:
        """bool [sample]: whether a sample has rows."""
        return np.asarray(self.group["samples/ok"][:], dtype=bool)

    @cached_property
    def labels(self) -> Labels:
        """Of the samples."""
        return read_labels(self.root, self.ref.capture)

    @property
    def keys(self) -> list[str]:
        """Names of the samples; not kept, as they are the larger part of what is known of samples."""
        return read_keys(self.root, self.ref.capture)

    def column(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A column of `rows/<space>`, as int64, read-only; those of a few shards are read at once, as each read has a price."""
        if stop is None or stop - start > self._window:
            return self._column(name, start, stop)
        first = start - start % self._window
        kept, values = self._columns.get(name, (-1, np.empty(0, np.int64)))
        if kept != first or stop - first > len(values):
            values = self._column(name, first, max(stop, first + self._window))
            self._columns[name] = (first, values)
        return values[start - first : stop - first]

    @property
    def _window(self) -> int:
        return self.space.shard_rows * max(1, min(COLUMN_SHARDS, COLUMN_ROWS // self.space.shard_rows))

    def _column(self, name: str, start: int, stop: int | None) -> np.ndarray:
        values = np.asarray(self._array(f"rows/{self.space.name}/{name}")[start:stop], dtype=np.int64)
        values.flags.writeable = False
        return values

    def values(self, start: int, stop: int) -> np.ndarray:
        """[row, feature] of the site, or of what its codes stand for; failed rows included."""
        if self._decoded is not None:
            return self._decoded.rows(start, stop)
        return np.asarray(self._array(self.layout.site.array)[start:stop])

    def _array(self, path: str) -> Any:
        """Opened once: metadata are read, and parsed, each time an array is."""
        if path not in self._opened:
            self._opened[path] = self.group[path]
        return self._opened[path]

    def n_ok(self, start: int, stop: int) -> int:
        """Rows of samples that did not fail."""
        if self.ok.all():
            return stop - start
        return len(self.good_samples(start, stop))

    def good_samples(self, start: int, stop: int) -> np.ndarray:
        """int64: the sample of each row whose sample did not fail."""
        sample = self.column("sample", start, stop)
        good: np.ndarray = sample[self.ok[sample]]
        return good


class Source(Protocol):
    """What the engine reads blocks from."""

    @property
    def parts(self) -> Sequence[Part]:
        """The captures whose units and shards are walked."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each port."""

    @property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """What a row of each port is, flattened; None: a vector."""

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """Names of the label codes that blocks carry."""

    @property
    def of_rows(self) -> tuple[str, ...]:
        """Labels of rows, rather than of samples, that blocks carry."""

    @property
    def refs(self) -> tuple[tuple[RowsRef, ...], ...]:
        """The captures of each port."""

    def part_rows(self, part: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of a part; index and sample count inside the part."""

    def n_ok(self, part: int, start: int, stop: int) -> int:
        """How many rows `part_rows` would give."""

    def good_samples(self, part: int, start: int, stop: int) -> np.ndarray:
        """int64: the sample of each row that `part_rows` would give, counted inside the part."""


class SiteSource:
    """The rows of one port; without `values`, arrays of no features stand for them, and they are not read."""

    def __init__(
        self,
        root: Location,
        refs: Sequence[RowsRef],
        labels: bool = False,
        drop_failed: bool = True,
        values: bool = True,
        of_rows: tuple[str, ...] = (),
    ) -> None:
        self.parts = [Part(root, ref) for ref in refs]
        self.with_labels, self.drop_failed, self.with_values = labels, drop_failed, values
        check_widths(self.parts)
        self._of_rows = of_rows
        if self.of_rows:
            check_tokens(self.parts)

    @cached_property
    def of_rows(self) -> tuple[str, ...]:
        """The asked ones, but those that samples have a label of the same name for."""
        return tuple(name for name in self._of_rows if not any(name in p.labels.values for p in self.parts))

    @property
    def refs(self) -> tuple[tuple[RowsRef, ...], ...]:
        """The captures of the port."""
        return (tuple(part.ref for part in self.parts),)

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of the port."""
        return (self.parts[0].layout.width,)

    @property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """See `Source`."""
        return (self.parts[0].layout.shape,)

    @cached_property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """Names of codes over all captures: the first capture's, then what others add."""
        return merged_categories(part.labels.categories for part in self.parts if self.with_labels)

    def n_ok(self, part: int, start: int, stop: int) -> int:
        """See `Source`."""
        return self.parts[part].n_ok(start, stop)

    def good_samples(self, part: int, start: int, stop: int) -> np.ndarray:
        """See `Source`."""
        return self.parts[part].good_samples(start, stop)

    def part_rows(self, part: int, start: int, stop: int) -> Rows:
        """See `Source`."""
        here = self.parts[part]
        self.require_rows(here)
        values = here.values(start, stop) if self.with_values else np.empty((stop - start, 0), np.float32)
        sample = here.column("sample", start, stop)
        position, index = here.column("position", start, stop), np.arange(start, stop, dtype=np.int64)
        if (sample < 0).any():
            raise DamageError(f"{here.ref.label}: rows {start}..{stop} name no sample; run `subspan verify`")
        labels = {name: column[sample] for name, column in self._labels[part].items()}
        labels |= token_labels(here, self.of_rows, start, stop)
        rows, ok = Rows((values,), sample, position, index, labels), here.ok[sample]
        return take(rows, ok) if self.drop_failed and not ok.all() else rows

    @cached_property
    def _labels(self) -> list[dict[str, np.ndarray]]:
        if not self.with_labels:
            return [{} for _ in self.parts]
        shared = set.intersection(*(set(part.labels.values) for part in self.parts))
        return [{name: self._recoded(part, name) for name in sorted(shared)} for part in self.parts]

    def _recoded(self, part: Part, name: str) -> np.ndarray:
        own, codes = part.labels.categories.get(name), part.labels.values[name]
        if own is None or own == self.categories[name][: len(own)]:
            return codes
        place = {category: code for code, category in enumerate(self.categories[name])}
        table: np.ndarray = np.array([place[category] for category in own] + [-1], dtype=np.int64)
        recoded: np.ndarray = table[codes]
        return recoded

    def require_rows(self, part: Part) -> None:
        if not part.keeps_rows:
            raise MethodError(
                f"{part.ref.label}: the capture keeps only the states of its fused methods, no rows, which a further pass would read; "
                "ask for a single pass, or capture with `keep: rows`"
            )


def n_rows(source: Source) -> int:
    """Rows of all parts, failed ones included."""
    return sum(part.space.n_rows for part in source.parts)


def n_samples(source: Source) -> int:
    """Samples of all parts, failed ones included."""
    return sum(part.spec.layout.n_samples for part in source.parts)


def shard_bounds(source: Source) -> list[tuple[int, int]]:
    """First row and one past the last of each shard, over the parts laid end to end."""
    bounds, first = [], 0
    for part in source.parts:
        for shard in range(part.space.n_shards):
            low, high = part.space.shard_bounds(shard)
            bounds.append((first + low, first + high))
        first += part.space.n_rows
    return bounds


def read(source: Source, start: int, stop: int) -> Rows:
    """Rows [start, stop) of the parts laid end to end; index and sample count over all of them."""
    pieces, row, sample = [], 0, 0
    for number, part in enumerate(source.parts):
        low, high = max(start - row, 0), min(stop - row, part.space.n_rows)
        if low < high:
            pieces.append(_shift(source.part_rows(number, low, high), row, sample))
        row, sample = row + part.space.n_rows, sample + part.spec.layout.n_samples
    return concatenate(pieces)


def concatenate(pieces: Sequence[Rows]) -> Rows:
    """Rows one after the other; a single piece is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    values = tuple(np.concatenate(columns) for columns in zip(*(p.values for p in pieces), strict=True))
    labels = {name: np.concatenate([p.labels[name] for p in pieces]) for name in pieces[0].labels}
    sample, position, index = (
        np.concatenate([getattr(p, name) for p in pieces]) for name in ("sample", "position", "index")
    )
    aligned = {
        port: {name: np.concatenate([p.aligned[port][name] for p in pieces]) for name in arrays}
        for port, arrays in pieces[0].aligned.items()
    }
    return Rows(values, sample, position, index, labels, pieces[0].network, aligned)


def take(rows: Rows, which: np.ndarray | slice) -> Rows:
    """Some rows, by a mask or by their places."""
    labels = {name: column[which] for name, column in rows.labels.items()}
    values = tuple(v[which] for v in rows.values)
    aligned = {port: {name: a[which] for name, a in found.items()} for port, found in rows.aligned.items()}
    sample, position, index = rows.sample[which], rows.position[which], rows.index[which]
    return Rows(values, sample, position, index, labels, rows.network, aligned)


def _shift(rows: Rows, row: int, sample: int) -> Rows:
    return replace(rows, index=rows.index + row, sample=rows.sample + sample) if row or sample else rows

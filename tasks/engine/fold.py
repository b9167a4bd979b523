"""Rows -> states: blocks in order inside a unit, units in order inside a span.

A block is the good rows of one shard. Blocks without rows are passed over, so that a shard of failed samples
changes no bit. Several reductions share one read of each shard.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial as bind
from itertools import groupby
from typing import NamedTuple

from schemas.base import Frozen
from schemas.errors import MethodError
from schemas.stage import RowsRef
from tasks.engine.ahead import ahead
from tasks.engine.blocks import block_of, weights_of
from tasks.engine.fusable import without_rows
from tasks.engine.prepare import open_source, places
from tasks.engine.reduction import (
    Counted,
    Reduction,
    aligned_ports,
    load_counted,
    reads_labels,
    row_labels,
    rows_folder,
    rows_ports,
    save_counted,
    span_path,
    unit_path,
    weight_label,
    whole_path,
)
from tasks.engine.source import Rows, Source
from tasks.engine.spans import Span
from tasks.methods.contract import Block, State, load_method
from tasks.store.location import Location


class Read(NamedTuple):
    """What blocks are read from."""

    root: Location
    refs: tuple[tuple[RowsRef, ...], ...]
    """Captures of each port."""
    device: str
    allowed: tuple[str, ...]
    aligned: tuple[str, ...] = ()
    """Artifacts whose arrays come with the rows."""
    values: bool = True
    """Whether the rows themselves are read."""


class FoldJob(NamedTuple):
    """One span of one capture, for reductions over the same rows."""

    read: Read
    part: int
    span: Span
    reductions: tuple[Reduction, ...]


class SpanDone(NamedTuple):
    """A span's states are in the store."""

    shards: int
    """Shards read."""


class Folder:
    """Folds blocks for one reduction."""

    def __init__(self, read: Read, reduction: Reduction, carry: State | None = None) -> None:
        self.read, self.reduction = read, reduction
        self.module = load_method(reduction.method, read.allowed)
        self.config: Frozen = self.module.Config.model_validate_json(reduction.config)
        self.ports, self.aligned = tuple(rows_ports(self.module)), aligned_ports(self.module)
        self.labels = reads_labels(self.module)
        self.weight = weight_label(self.config)
        self.of_rows = row_labels(self.module, self.config)
        self.carry = load_carry(read, reduction) if carry is None else carry

    def block(self, block: Block) -> Block:
        """The block as this method's ports call it."""
        rows = dict(zip(self.ports, block.rows.values(), strict=block.network is None))
        weight = None if self.weight is None else weights_of(block, self.weight)
        labels = block.labels if self.labels else {}
        aligned = dict(zip(self.aligned, block.aligned.values(), strict=True))
        return replace(block, rows=rows, labels=labels, weight=weight, aligned=aligned)

    @property
    def needs_labels(self) -> bool:
        """Whether blocks must come with labels."""
        return self.labels or self.weight is not None

    def partial(self, block: Block) -> State:
        """The state of a block."""
        state: State = self.module.partial(self.block(block), self.carry, self.config)
        return state

    def add(self, counted: Counted | None, block: Block) -> Counted | None:
        """The state with one more block."""
        if len(block) == 0:
            return counted
        state = self.partial(block)
        if counted is None:
            return Counted(state, len(block))
        return Counted(self.module.merge(counted.state, state), counted.rows + len(block))

    def merge(self, a: Counted, b: Counted) -> Counted:
        """Both states together."""
        return Counted(self.module.merge(a.state, b.state), a.rows + b.rows)


def fold_span(job: FoldJob) -> SpanDone:
    """Make the states of a span that are not in the store yet.

    Raises:
        MethodError: for rows that hold NaN, or for a capture without rows whose unit states are missing.
    """
    folders = [Folder(job.read, reduction) for reduction in job.reductions]
    missing = [f for f in folders if load_counted(job.read.root, _place(job, f), job.read.device) is None]
    if not missing:
        return SpanDone(0)
    source = _source(job.read, missing)
    total: list[Counted | None] = [None] * len(missing)
    shards = 0
    for states, read in fold_units(job.read, source, job.part, job.span.units, missing):
        shards += read
        for n, (folder, state) in enumerate(zip(missing, states, strict=True)):
            before = total[n]
            total[n] = state if before is None else folder.merge(before, state)
    for folder, counted in zip(missing, total, strict=True):
        if counted is not None:
            save_counted(job.read.root, _place(job, folder), counted)
    return SpanDone(shards)


def _source(read: Read, folders: Sequence[Folder]) -> Source:
    """What blocks for these are read from; each calls the artifacts as its own ports do."""
    aligned = dict(zip(folders[0].aligned, read.aligned, strict=True))
    labels = any(f.needs_labels for f in folders)
    of_rows = tuple(sorted({name for folder in folders for name in folder.of_rows}))
    return open_source(read.root, read.refs, labels, aligned, read.values, of_rows)


class Piece(NamedTuple):
    """One shard of a unit."""

    unit: int
    fused: list[Counted | None]
    """The unit's states that were made at capture time, by folder."""
    rows: Rows | None
    """None where nobody needs them."""


def fold_units(
    read: Read, source: Source, part: int, units: Sequence[int], folders: Sequence[Folder]
) -> Iterator[tuple[list[Counted], int]]:
    """The states of each unit, taken from what was fused where that fits, and the number of shards read for it.

    The next shard is read while one is worked on, also where it is the next unit's.
    """
    space, reader = source.parts[part].space, _Reader(read, source, part, folders)
    reads = [bind(reader, unit, shard) for unit in units for shard in space.unit_shard_range(unit)]
    for _, pieces in groupby(ahead(reads), lambda piece: piece.unit):
        yield _fold_unit(read, source, pieces, folders)


class _Reader:
    """Reads shards in order, and at the first one of a unit what was fused of it."""

    def __init__(self, read: Read, source: Source, part: int, folders: Sequence[Folder]) -> None:
        self._read, self._source, self._part, self._folders = read, source, part, folders
        self._unit, self._fused = -1, list[Counted | None]()

    def __call__(self, unit: int, shard: int) -> Piece:
        if unit != self._unit:
            self._fused = [_fused(self._read, self._source, self._part, unit, f) for f in self._folders]
            self._unit = unit
        if all(state is not None for state in self._fused):
            return Piece(unit, self._fused, None)
        bounds = self._source.parts[self._part].space.shard_bounds(shard)
        return Piece(unit, self._fused, self._source.part_rows(self._part, *bounds))


def _fold_unit(
    read: Read, source: Source, pieces: Iterator[Piece], folders: Sequence[Folder]
) -> tuple[list[Counted], int]:
    where, shards = places(source), 0
    states: list[Counted | None] = []
    fused: list[Counted | None] = []
    empty: Block | None = None
    for piece in pieces:
        fused, states = piece.fused, states or list(piece.fused)
        if piece.rows is None:
            continue
        block = block_of(piece.rows, folders[0].ports, read.device, where)
        for n, folder in enumerate(folders):
            if fused[n] is None:
                states[n] = folder.add(states[n], _without(block, set(source.of_rows) - set(folder.of_rows)))
        empty, shards = block if len(block) == 0 else empty, shards + 1
        del piece, block
    return [close(folder, state, empty) for folder, state in zip(folders, states, strict=True)], shards


def _without(block: Block, labels: set[str]) -> Block:
    """The block without labels that only others asked for."""
    if not labels:
        return block
    return replace(block, labels={name: v for name, v in block.labels.items() if name not in labels})


def close(folder: Folder, counted: Counted | None, empty: Block | None) -> Counted:
    """The state of a unit, which is that of an empty block where no sample was good."""
    if counted is not None:
        return counted
    if empty is None:
        raise MethodError("a unit without shards has no state; the capture's layout is damaged")
    return Counted(folder.partial(empty), 0)


def _fused(read: Read, source: Source, part: int, unit: int, folder: Folder) -> Counted | None:
    """A unit state made at capture time, if it holds exactly the rows that are good now."""
    here = source.parts[part]
    found = load_counted(read.root, unit_path(_folder(folder, source, part), unit), read.device)
    if not here.keeps_rows:
        if found is None:
            made = folder.reduction
            config = load_method(made.method, read.allowed).Config.model_validate_json(made.config)
            raise without_rows(here.ref.label, here.spec, made.method, config, read.allowed)
        return found
    if found is None or found.rows != source.n_ok(part, *here.space.unit_rows(unit)):
        return None
    return found


def _folder(folder: Folder, source: Source, part: int) -> str:
    return rows_folder(folder.reduction, source.refs, part)


def _place(job: FoldJob, folder: Folder) -> str:
    """Of the span's state; the only one of a capture is that of all its rows."""
    place = rows_folder(folder.reduction, job.read.refs, job.part)
    return whole_path(place) if job.span.of == 1 else span_path(place, job.span.number, job.span.of)


def load_carry(read: Read, reduction: Reduction) -> State:
    """What a reduction starts with.

    Raises:
        MethodError: if it is missing or damaged.
    """
    if reduction.carry is None:
        return {}
    counted = load_counted(read.root, reduction.carry, read.device)
    if counted is None:
        raise MethodError(f"{read.root.url}/{reduction.carry} is missing or damaged; run the stage again")
    return counted.state

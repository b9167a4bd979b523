"""Runs `reduce` stages: begin, fold all spans, gather each capture, then finish or go into the next round.

Numbers are computed by jobs on the driver alone; between them goes nothing but names of states. Whatever was
folded, gathered or carried lies in the store, so that a stage that was killed goes on where it was.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from schemas.artifact import Artifact
from schemas.errors import StoreError
from schemas.stage import ResolvedStage
from tasks.engine.call import Call
from tasks.engine.fold import Folder, FoldJob, Read, SpanDone, fold_span, load_carry
from tasks.engine.outcome import Used, write_outcome
from tasks.engine.prepare import Prepared, StageJob, prepare, start
from tasks.engine.reduction import (
    Counted,
    Reduction,
    aligned_ports,
    load_counted,
    make_reduction,
    reads_values,
    rows_folder,
    save_counted,
    span_path,
    whole_path,
)
from tasks.engine.source import n_rows
from tasks.engine.spans import Span, spans_of, tree
from tasks.methods.contract import State, load_method
from tasks.store.location import Location


class Round(NamedTuple):
    """One pass of a stage over its rows."""

    stage: ResolvedStage
    reduction: Reduction
    number: int
    read: Read
    spans: tuple[tuple[Span, ...], ...]
    """Of each capture."""


class GatherJob(NamedTuple):
    """Spans of one capture -> its state."""

    read: Read
    part: int
    reduction: Reduction
    spans: tuple[Span, ...]


class AdvanceJob(NamedTuple):
    """Rounds that have one state, of rows that have all been folded."""

    rounds: tuple[tuple[StageJob, Round], ...]


Advanced = Round | Artifact


def run(call: Call, stages: Sequence[ResolvedStage]) -> Iterator[Artifact]:
    """Run stages to their artifacts; those over the same rows share one read per round."""
    rounds = call.run(begin, [call.job(stage) for stage in stages])
    while rounds:
        _fold(call, rounds)
        advanced = [a for made in call.run(advance, _advance_jobs(call, rounds)) for a in made]
        for here in rounds:
            _forget(call, here)
        yield from (a for a in advanced if isinstance(a, Artifact))
        rounds = [a for a in advanced if isinstance(a, Round)]


def begin(job: StageJob) -> Round:
    """The first round of a stage, or the one that an earlier run had reached."""
    ready = prepare(job)
    kept = load_counted(job.root, _round_path(job.stage), job.device)
    if kept is None:
        carry = start(ready, job.device)
        return _round(job, ready, carry, 0)
    return _round(job, ready, kept.state, kept.rows)


def gather(job: GatherJob) -> int:
    """Make the state of all rows of a capture from its spans, which are then deleted."""
    _whole(job)
    return 0


def advance(job: AdvanceJob) -> list[Advanced]:
    """Finish stages, or start their next rounds. What they have in common is read, and decomposed, once."""
    _, first = job.rounds[0]
    total = _total(first, Folder(first.read, first.reduction))
    made: list[Advanced] = []
    failed: list[Exception] = []
    for stage_job, here in job.rounds:
        try:
            made.append(_advance(stage_job, here, total))
        except Exception as error:  # noqa: BLE001 -- no stage fails for another
            failed.append(error)
    if failed:
        raise failed[0]
    return made


def _advance(job: StageJob, here: Round, total: Counted) -> Advanced:
    ready = prepare(job)
    carry = load_carry(here.read, here.reduction)
    if hasattr(ready.module, "update"):
        following = ready.module.update(total.state, carry, ready.inputs, ready.config)
        if following is not None:
            return _round(job, ready, following, here.number + 1)
    result, arrays = ready.module.finish(total.state, carry, ready.inputs, ready.config)
    used = Used(rows=total.rows, dropped=n_rows(ready.source) - total.rows)
    artifact = write_outcome(job, result, arrays, used)
    job.root.delete(_rounds_folder(here.stage), recursive=True)
    return artifact


def _advance_jobs(call: Call, rounds: Sequence[Round]) -> list[AdvanceJob]:
    """One for each state."""
    groups: dict[tuple[Any, ...], list[tuple[StageJob, Round]]] = {}
    for r in rounds:
        groups.setdefault((r.read, r.reduction.id), []).append((call.job(r.stage), r))
    return [AdvanceJob(tuple(group)) for group in groups.values()]


def _round(job: StageJob, ready: Prepared, carry: State, number: int) -> Round:
    """A round with this carry, both kept in the store."""
    stage = job.stage
    place = f"{_rounds_folder(stage)}/carry-{number:04d}.npz"
    aligned = tuple(stage.artifacts[name].artifact for name in aligned_ports(ready.module))
    reduction = make_reduction(stage.method, ready.module, ready.config, carry, ready.inputs, place, aligned)
    if carry:
        save_counted(job.root, place, Counted(carry, 0))
        save_counted(job.root, _round_path(stage), Counted(carry, number))
    refs, values = ready.source.refs, reads_values(ready.module)
    read = Read(job.root, refs, job.device, job.allowed, aligned, values)
    width = sum(ready.source.widths)
    return Round(stage, reduction, number, read, tuple(spans_of(p.space, width) for p in ready.source.parts))


def _forget(call: Call, here: Round) -> None:
    """Delete what only a round that is over could use: its carry, and states that depend on it, over its own rows.

    A pass that may be the only one starts with the same carry every time: its states, perhaps made while rows were captured, and then all
    that there is of them, serve other stages.
    """
    if here.reduction.carry is None:
        return
    call.root.delete(here.reduction.carry)
    module = load_method(here.stage.method, call.allowed)
    if hasattr(module, "update") and (here.number > 0 or not hasattr(module, "one_pass")):
        for part in range(len(here.spans)):
            call.root.delete(rows_folder(here.reduction, here.read.refs, part), recursive=True)


def _rounds_folder(stage: ResolvedStage) -> str:
    return f"states/rounds/{stage.id}"


def _round_path(stage: ResolvedStage) -> str:
    return f"{_rounds_folder(stage)}/reached.npz"


def _fold(call: Call, rounds: Sequence[Round]) -> None:
    """Make the state of every capture of every round; rounds over the same rows share jobs."""
    folds: list[FoldJob] = []
    gathers: dict[str, GatherJob] = {}
    for together in _by_rows(rounds):
        for part in range(len(together[0].spans)):
            missing = _missing(call.root, together, part)
            folds += _fold_jobs(together[0], part, missing)
            for r in (
                missing if len(together[0].spans[part]) > 1 else ()
            ):  # a single span's state is the capture's
                gathers.setdefault(
                    rows_folder(r, together[0].read.refs, part),
                    GatherJob(together[0].read, part, r, together[0].spans[part]),
                )
    call.run(fold_span, folds, _shards)
    call.run(gather, list(gathers.values()))


def _shards(done: SpanDone) -> int:
    return done.shards


def _by_rows(rounds: Sequence[Round]) -> list[list[Round]]:
    groups: dict[tuple[Any, ...], list[Round]] = {}
    for r in rounds:
        groups.setdefault((r.read.refs, r.read.aligned, r.read.values), []).append(r)
    return list(groups.values())


def _missing(root: Location, rounds: Sequence[Round], part: int) -> tuple[Reduction, ...]:
    """The different reductions of some rounds over the same rows whose state of a capture is not there."""
    found = {r.reduction.id: r.reduction for r in rounds}
    refs = rounds[0].read.refs
    return tuple(r for r in found.values() if not root.exists(whole_path(rows_folder(r, refs, part))))


def _fold_jobs(here: Round, part: int, reductions: tuple[Reduction, ...]) -> list[FoldJob]:
    if not reductions:
        return []
    return [FoldJob(here.read, part, span, reductions) for span in here.spans[part]]


def _total(here: Round, folder: Folder) -> Counted:
    """The state of all captures, merged in order."""
    total: Counted | None = None
    for part, cut in enumerate(here.spans):
        state = _whole(GatherJob(here.read, part, here.reduction, cut), folder)
        total = state if total is None else folder.merge(total, state)
    if total is None:
        raise StoreError(f"stage {here.stage.id} has no captures")
    return total


def _whole(job: GatherJob, folder: Folder | None = None) -> Counted:
    """The state of a capture: read, or merged from its spans, which are made where they are missing."""
    root = job.read.root
    place = rows_folder(job.reduction, job.read.refs, job.part)
    found = load_counted(root, whole_path(place), job.read.device)
    if found is not None:
        return found
    folder = folder or Folder(job.read, job.reduction)
    whole = tree(lambda number: _span_state(job, place, number), len(job.spans), folder.merge)
    if len(job.spans) > 1:
        save_counted(root, whole_path(place), whole)
        for span in job.spans:
            root.delete(span_path(place, span.number, span.of))
    return whole


def _span_state(job: GatherJob, place: str, number: int) -> Counted:
    span = job.spans[number]
    path = span_path(place, number, span.of) if span.of > 1 else whole_path(place)
    found = load_counted(job.read.root, path, job.read.device)
    if found is None:
        fold_span(FoldJob(job.read, job.part, span, (job.reduction,)))
        found = load_counted(job.read.root, path, job.read.device)
    if found is None:
        raise StoreError(f"{job.read.root.url}/{path} was written but cannot be read back; check the storage")
    return found

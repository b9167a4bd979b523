"""Tables for people, JSON for programs. Everything that a command answers goes through here, to stdout."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.status import CaptureStatus, RootStatus

if TYPE_CHECKING:
    from pipelines.estimate import Again, Estimate
    from pipelines.plan import Plan
    from pipelines.trial import Trial
    from tasks.export import Exported
    from tasks.latency import Timed
    from tasks.recompute import Recomputed

Cell = str | int | float | None
MOST_SITES = 3


def write_json(value: Any) -> None:
    """One JSON document on stdout, nothing else."""
    write_line(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Not an exit: a command goes on though nobody reads what it says."""
        _hush()


def _hush() -> None:
    """Say nothing more on stdout, whose reader has gone, as `| head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """A table on stdout; nothing at all without rows."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    body = [list(row) for row in rows]
    for index, heading in enumerate(headings):
        numeric = bool(body) and all(
            isinstance(row[index], int | float) or row[index] is None for row in body
        )
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*(cell_text(cell) for cell in row))
    if body:
        console = _Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)
        if not sys.stdout.isatty():
            console.width = max(console.width, 200)
        console.print(table)


def write_line(text: str) -> None:
    """A sentence on stdout."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _hush()


def cell_text(cell: Cell) -> str:
    """A value as a table shows it."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.5g}" if isinstance(cell, float) else cell


def size_text(n: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} PB"


def plan_record(
    plan: "Plan", trials: Sequence["Trial"], time: "Estimate | None", again: Sequence["Again"]
) -> dict[str, Any]:
    """A plan as JSON, with its totals, trials, time, and what computing its captures again takes."""
    return {
        **plan.model_dump(mode="json"),
        "bytes_on_disk": plan.bytes_on_disk,
        "memory_bytes": plan.memory_bytes,
        "finished": plan.finished,
        "trials": [trial.model_dump(mode="json") for trial in trials],
        "estimate": None if time is None else time._asdict(),
        "recompute": [one._asdict() for one in again],
    }


def show_plan(plan: "Plan") -> None:
    """What a run will do: captures and stages, with ids, units, bytes and memory."""
    write_table(
        f"{plan.run.name} in {plan.run.root}",
        ("capture", "id", "samples", "rows", "sites", "units done", "of", "bytes", "memory", "state"),
        (
            (
                c.name if c.partition is None else f"{c.name} / {c.partition}",
                c.id,
                c.spec.layout.n_samples,
                ", ".join(f"{space.n_rows:,} {space.name}" for space in c.spec.layout.spaces),
                len(c.spec.layout.sites),
                c.units_done,
                c.n_units,
                size_text(c.bytes),
                size_text(c.worker_memory_bytes),
                "sealed" if c.sealed else "open",
            )
            for c in plan.captures
        ),
    )
    names = list(dict.fromkeys(stage.name for stage in plan.stages))
    groups = [[stage for stage in plan.stages if stage.name == name] for name in names]
    write_table(
        "stages",
        ("stage", "method", "artifacts done", "of"),
        ((g[0].name, g[0].stage.method, sum(s.done for s in g), len(g)) for g in groups),
    )
    looped = [
        (c.name, name, why)
        for c in plan.captures
        if c.spec.layout.gradients is not None
        for name, why in c.spec.layout.gradients.looped.items()
    ]
    write_table(
        "parameters whose gradients take a pass for each sample", ("capture", "parameter", "why"), looped
    )
    frozen = [
        (c.name, len(left), left[0])
        for c in plan.captures
        if c.spec.layout.gradients is not None and (left := c.spec.layout.gradients.frozen)
    ]
    write_table(
        "parameters left out: frozen, not in the checkpoint, or no floats",
        ("capture", "number", "such as"),
        frozen,
    )
    weighed = [
        c.name
        for c in plan.captures
        if c.spec.layout.gradients is not None and c.spec.layout.gradients.weighed
    ]
    if weighed:
        write_line(
            f"gradients of {', '.join(weighed)}: four passes or more for each batch, as the network's graph does not tell that rows stay "
            "with their samples (samples along another axis or taken one by one, checkpoints, functions of its own)"
        )


def show_again(again: Sequence["Again"]) -> None:
    """What captures take on disk, and what keeping ids alone and computing them again would."""
    write_table(
        "store rows, or ids alone and compute again",
        ("capture", "rows, before compression", "or ids", "and one worker's time", "from"),
        (
            (
                one.capture if one.partition is None else f"{one.capture} / {one.partition}",
                size_text(one.bytes),
                "not possible: recorded steps" if one.ids_bytes is None else size_text(one.ids_bytes),
                "not known" if one.seconds is None else time_text(one.seconds),
                one.basis or "-",
            )
            for one in again
        ),
    )


def show_trials(trials: Sequence["Trial"]) -> None:
    """What the longest batches cost, beside what the plan projects."""
    write_table(
        "the longest batch, run here",
        (
            "capture",
            "space",
            "device",
            "samples",
            "longest",
            "s per 1,000",
            "peak",
            "on the GPU",
            "projected",
        ),
        (
            (
                t.capture,
                t.space,
                t.device,
                t.samples,
                t.longest,
                t.seconds_per_1000,
                size_text(t.peak_bytes),
                None if t.device_peak_bytes is None else size_text(t.device_peak_bytes),
                size_text(t.projected_bytes),
            )
            for t in trials
        ),
    )


def plan_line(plan: "Plan", found: "Estimate | None") -> str:
    """Units, bytes, memory and time of what is left to do, in one line."""
    if plan.finished:
        return "Nothing to compute: everything is there."
    units = sum(c.n_units - c.units_done for c in plan.captures)
    stages = sum(not stage.done for stage in plan.stages)
    memory = f" {_memory_text(plan, found)}" if plan.memory_bytes else ""
    return (
        f"To do: {units:,} units, {stages:,} artifacts. To write: at most {size_text(plan.bytes_on_disk)}.{memory}"
        f"{f' {estimate_text(found)}' if units else ''}{_network_text(plan)}"
    )


def _network_text(plan: "Plan") -> str:
    """What to say of stages that send samples through the network again, whose time nobody knows before."""
    from pipelines.stages import allowed_packages
    from tasks.methods.contract import BatchesPort, load_method

    todo, allowed = [stage.stage.method for stage in plan.stages if not stage.done], allowed_packages()
    ports = {method: load_method(method, allowed).READS.values() for method in set(todo)}
    n = sum(any(isinstance(port, BatchesPort) for port in ports[method]) for method in todo)
    if not n:
        return ""
    return f" {n:,} of the artifacts send all samples through the network again, some of them often: their time is not known."


def _memory_text(plan: "Plan", found: "Estimate | None") -> str:
    if plan.execution.cluster != "threads" or found is None:
        return f"Memory of one worker: about {size_text(plan.memory_bytes)}."
    return f"Memory: about {size_text(plan.threads_memory_bytes(found.workers))} in {found.workers} threads of one process."


def estimate_text(found: "Estimate | None") -> str:
    """The time of the captures and what it rests on."""
    if found is None:
        return "Time: not known before a unit is done; `subspan plan --probe` measures a batch."
    workers = "one worker" if found.workers == 1 else f"{found.workers} workers"
    return f"Time of the captures: about {time_text(found.seconds)} with {workers}, from {'; '.join(found.basis)}."


def time_text(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def show_root(status: RootStatus, everything: bool) -> None:
    """Captures (and artifacts and runs) below a root."""
    if not (status.captures or status.artifacts or status.runs):
        write_line(f"{status.root} holds nothing yet.")
    write_table(
        f"captures in {status.root}",
        ("id", "name", "model", "data", "samples", "sites", "units done", "of", "bytes", "failed", "state"),
        (
            (
                c.id,
                ", ".join(c.names),
                c.model,
                c.data if c.partition is None else f"{c.data} / {c.partition}",
                c.samples,
                c.sites,
                c.units_done,
                c.units,
                size_text(c.bytes),
                len(c.failures) if c.sealed else None,
                "sealed" if c.sealed else f"held by {c.holder}" if c.holder else "open",
            )
            for c in status.captures
        ),
    )
    _show_pace(status.captures)
    if everything:
        write_table(
            "artifacts",
            ("id", "method", "site", "rows", "seconds", "finished"),
            ((a.id, a.method, _sites(a.sites), a.rows, a.seconds, a.finished) for a in status.artifacts),
        )
    else:
        methods = [a.method for a in status.artifacts]
        counts = ((method, methods.count(method)) for method in sorted(set(methods)))
        write_table("artifacts", ("method", "finished"), counts)
    write_table("damaged", ("id", "why"), status.damaged.items())
    write_table(
        "runs",
        ("id", "captures", "artifacts", "failures", "seconds"),
        (
            (r.id, len(r.outcome.captures), len(r.outcome.artifacts), r.outcome.failures, r.outcome.seconds)
            for r in status.runs
        ),
    )


def _show_pace(captures: Sequence[CaptureStatus]) -> None:
    """How fast units are made, and what is left of captures that are not sealed."""
    write_table(
        "units, each by one worker",
        (
            "id",
            "seconds",
            "slowest",
            "tokens/s",
            "MB/s",
            "network",
            "writer",
            "waiting",
            "last unit",
            "units/s",
            "left",
        ),
        (
            (
                c.id,
                c.pace.unit_seconds,
                f"{c.pace.slowest_unit} {c.pace.slowest_seconds:.1f} s",
                c.pace.tokens_per_second,
                c.pace.written_per_second / 1e6,
                c.pace.forward,
                c.pace.write,
                c.pace.wait,
                c.pace.last,
                c.pace.units_per_second,
                None if c.sealed else c.units - c.units_done,
            )
            for c in captures
            if c.pace is not None
        ),
    )


def _sites(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - MOST_SITES} more" if len(sites) > MOST_SITES else ""
    return ", ".join(sites[:MOST_SITES]) + more


def show_export(made: "Exported", timed: "Timed | None", json: bool) -> None:
    """What was written, and how fast it is."""
    found = {
        "candidate": made.name,
        "folder": str(made.folder),
        "stored_bytes": made.stored_bytes,
        "tensor_bytes": made.tensor_bytes,
        "layers": len(made.layers),
    }
    if json:
        write_json(found | ({} if timed is None else {"timed": timed._asdict()}))
        return
    write_line(
        f"{made.name}: {len(made.layers)} compressed layers, {size_text(made.stored_bytes)} of tensors, in {made.folder}"
    )
    if timed is not None:
        write_line(
            f"{timed.samples} samples on {timed.threads} thread{'s' if timed.threads > 1 else ''}: {timed.before_seconds:.3f} s before, "
            f"{timed.after_seconds:.3f} s after, {timed.ratio:.2f} times as fast (quartiles {timed.low:.2f}, {timed.high:.2f})"
        )


def show_recomputed(found: "Recomputed") -> None:
    """Where a capture that was computed again differs from the store, and what either way costs."""
    different = [one for one in found.arrays if one.differing]
    write_table(
        "not as stored",
        ("array", "values", "differing", "finite on one side", "largest error", "of the stored value"),
        (
            (a.array, a.values, a.differing, a.unmatched, a.largest_absolute, a.largest_relative)
            for a in different
        ),
    )
    n_values = sum(one.values for one in found.arrays)
    what = f"{found.units:,} of {found.n_units:,} units of capture {found.capture}, {found.rows:,} rows"
    if found.exact:
        write_line(f"{what}: bit for bit as stored ({n_values:,} values).")
    else:
        largest = max(different, key=lambda one: one.largest_relative)
        write_line(
            f"{what}: {sum(one.differing for one in different):,} of {n_values:,} values differ, by up to "
            f"{max(one.largest_absolute for one in different):.3g}, and by {largest.largest_relative:.3g} of a value at {largest.array}."
        )
    if found.fingerprint:
        write_line(f"Computed with {found.fingerprint}: equal bits are promised for the same only.")
    again = (
        "recorded steps, which no network gives again"
        if found.ids_bytes is None
        else f"ids {size_text(found.ids_bytes)}"
    )
    share = found.n_rows / found.rows
    about = "about " if found.units < found.n_units else ""
    write_line(
        f"Store: {size_text(found.n_stored_bytes)}, read in {about}{time_text(share * found.read_seconds)}. "
        f"Instead: {again}, computed in {about}{time_text(share * found.seconds)} by one worker."
    )

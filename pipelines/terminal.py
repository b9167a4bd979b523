"""Tables for people, JSON for programs. Everything that a command answers goes through here, to stdout."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.status import RootStatus
from schemas.outcome import RunOutcome

if TYPE_CHECKING:
    from pipelines.plan import Plan

Cell = str | int | float | None
MOST_SITES = 3


def write_json(value: Any) -> None:
    """One JSON document on stdout, nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
        console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)
        if not sys.stdout.isatty():
            console.width = max(console.width, 200)
        console.print(table)


def write_line(text: str) -> None:
    """A sentence on stdout."""
    sys.stdout.write(text + "\n")


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


def show_plan(plan: "Plan") -> None:
    """What a run will do: captures, stages, bytes and memory."""
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
    if plan.finished:
        write_line("Nothing to compute: everything is there.")
    else:
        memory = size_text(plan.memory_bytes)
        write_line(
            f"To write: at most {size_text(plan.bytes_on_disk)}. Memory of one worker: about {memory}."
        )


def show_outcome(outcome: RunOutcome) -> None:
    """What a run did."""
    write_table(
        outcome.run,
        ("capture", "id", "rows", "failed samples", "computed"),
        (
            (
                c.name if c.partition is None else f"{c.name} / {c.partition}",
                c.id,
                ", ".join(f"{n:,} {space}" for space, n in c.rows.items()),
                len(c.failures),
                c.computed,
            )
            for c in outcome.captures
        ),
    )
    for capture in outcome.captures:
        for site, count in capture.saturated.items():
            write_line(
                f"{capture.name}: {count:,} values at {site} exceed the store's dtype and are infinite there; use bfloat16 or float32"
            )
    for stage in dict.fromkeys(made.stage for made in outcome.artifacts):
        show_results(stage, [made for made in outcome.artifacts if made.stage == stage])
    write_table(
        "failed stages",
        ("stage", "site", "reason"),
        ((f.stage, f.site, f.reason) for f in outcome.stage_failures),
    )
    work = f"{outcome.forwards:,} forwards, {outcome.shards_read:,} shards read, {outcome.seconds:.1f} s"
    write_line(f"{work}." + (f" Report: {outcome.report}" if outcome.report else ""))


TELLING = (
    "participation_ratio_unbiased",
    "participation_ratio",
    "effective_rank",
    "anisotropy",
    "components_90",
)
"""Fields of results that are shown first."""


def show_results(stage: str, artifacts: Sequence[Any], most: int = 6) -> None:
    """One row per site with the numbers of the result that tell most, without those that all sites share."""
    numbers = [
        {k: v for k, v in made.result.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        for made in artifacts
    ]
    found = dict.fromkeys(name for fields in numbers for name in fields)
    telling = [n for n in found if len(numbers) == 1 or len({fields.get(n) for fields in numbers}) > 1]
    names = sorted(telling, key=lambda n: TELLING.index(n) if n in TELLING else len(TELLING))[:most]
    write_table(
        f"{stage} ({artifacts[0].method})",
        ("site", *(name.replace("_", " ") for name in names), "artifact"),
        (
            (made.site, *(fields.get(name) for name in names), made.id)
            for made, fields in zip(artifacts, numbers, strict=True)
        ),
    )


def show_root(status: RootStatus, everything: bool) -> None:
    """Captures (and artifacts and runs) below a root."""
    if not (status.captures or status.artifacts or status.runs):
        write_line(f"{status.root} holds nothing yet.")
    write_table(
        f"captures in {status.root}",
        ("id", "model", "data", "samples", "sites", "units done", "of", "bytes", "failed", "state"),
        (
            (
                c.id,
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


def _sites(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - MOST_SITES} more" if len(sites) > MOST_SITES else ""
    return ", ".join(sites[:MOST_SITES]) + more

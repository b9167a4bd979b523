"""Tables for people, JSON for programs. Everything that a command answers goes through here, to stdout."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from pipelines.status import RootStatus
from schemas.outcome import ArtifactOutcome, RunOutcome
from tasks.store.location import Location

if TYPE_CHECKING:
    from pipelines.estimate import Estimate
    from pipelines.plan import Plan
    from pipelines.trial import Trial

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


def plan_record(plan: "Plan", trials: Sequence["Trial"], time: "Estimate | None") -> dict[str, Any]:
    """A plan as JSON, with its totals, trials and time."""
    return {
        **plan.model_dump(mode="json"),
        "bytes_on_disk": plan.bytes_on_disk,
        "memory_bytes": plan.memory_bytes,
        "finished": plan.finished,
        "trials": [trial.model_dump(mode="json") for trial in trials],
        "estimate": None if time is None else time._asdict(),
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
        f"{f' {estimate_text(found)}' if units else ''}"
    )


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


def show_outcome(outcome: RunOutcome) -> None:
    """What a run found, where it lies, and how to open it."""
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
        if capture.truncated:
            write_line(f"{capture.name}: {capture.truncated:,} samples were cut to the longest length.")
        for site, count in capture.saturated.items():
            write_line(
                f"{capture.name}: {count:,} values at {site} exceed the store's dtype and are infinite there; use bfloat16 or float32"
            )
    show_results(outcome.artifacts)
    write_table(
        "failed stages",
        ("stage", "site", "reason"),
        ((f.stage, f.site, f.reason) for f in outcome.stage_failures),
    )
    work = f"{outcome.forwards:,} forwards, {outcome.shards_read:,} shards read, {outcome.seconds:.1f} s"
    write_line(f"{work}.")
    write_line(f"It lies in {Location(outcome.root).url}")
    if outcome.report:
        write_line(f"Report: {outcome.report}")
    for line in opening_lines(outcome):
        write_line(line)


def opening_lines(outcome: RunOutcome) -> list[str]:
    """Python that opens the first capture and the first artifact of a run."""
    root, first = Location(outcome.root).url, outcome.captures[0]
    name = first.name if first.partition is None else f"{first.name}/{first.partition}"
    lines = [f"import subspan; capture = subspan.open_capture({root!r}, {name!r})"]
    for made in outcome.artifacts[:1]:
        about = f"{made.stage} at {made.site}" if made.site else made.stage
        lines.append(f"artifact = subspan.open_artifact({root!r}, {made.id!r})  # {about}")
    return ["Open it with:", *(f"    {line}" for line in lines)]


TELLING = (
    "participation_ratio_unbiased",
    "participation_ratio",
    "effective_rank",
    "anisotropy",
    "components_90",
    "accuracy",
    "cka",
    "adjusted_rand",
    "explained",
    "share",
    "dimension",
    "dimension_above",
    "dimension_most",
    "first_share",
    "first_share_null",
    "adjacent",
    "null",
    "largest",
    "converged",
)
"""Fields of results that are shown first."""
MOST_CAVEATS = 8


def show_results(artifacts: Sequence[ArtifactOutcome], most: int = 5) -> None:
    """The numbers that tell most, and what results say of themselves.

    Stages over the same sites share a table with a row for each site; where a method runs several times over them, it has one of its
    own with a row for each stage.
    """
    for group in _together(artifacts):
        if len({made.stage for made in group}) > len({made.method for made in group}):
            for method in dict.fromkeys(made.method for made in group):
                _by_stage([made for made in group if made.method == method], most)
        else:
            _by_site(group, most)
    show_caveats(artifacts)


def _together(artifacts: Sequence[ArtifactOutcome]) -> list[list[ArtifactOutcome]]:
    """Results of stages that have the same sites."""
    stages = dict.fromkeys(made.stage for made in artifacts)
    members = {stage: [made for made in artifacts if made.stage == stage] for stage in stages}
    groups: dict[tuple[str, ...], list[ArtifactOutcome]] = {}
    for group in members.values():
        groups.setdefault(tuple(made.site for made in group), []).extend(group)
    return list(groups.values())


def _by_site(artifacts: Sequence[ArtifactOutcome], most: int) -> None:
    """One row per site, at least one number of every stage."""
    stages = dict.fromkeys(made.stage for made in artifacts)
    columns = telling_columns(artifacts)[: max(most, len(stages))]
    if not columns:
        return
    fields = [field for _, field in columns]
    headings = [f if fields.count(f) == 1 else f"{stage} {f}" for stage, f in columns]
    sites = dict.fromkeys(made.site for made in artifacts)
    found = {(made.site, made.stage, k): v for made in artifacts for k, v in numbers(made).items()}
    write_table(
        ", ".join(dict.fromkeys(f"{made.stage} ({made.method})" for made in artifacts)),
        ("site", *(heading.replace("_", " ") for heading in headings)),
        ((site, *(found.get((site, *column)) for column in columns)) for site in sites),
    )


def _by_stage(artifacts: Sequence[ArtifactOutcome], most: int) -> None:
    """One row per stage and site of one method."""
    fields = list(dict.fromkeys(field for made in artifacts for field in numbers(made)))
    columns = sorted(fields, key=lambda field: _rank(("", field)))[:most]
    write_table(
        artifacts[0].method,
        ("stage", "site", *(field.replace("_", " ") for field in columns)),
        ((made.stage, made.site, *(numbers(made).get(field) for field in columns)) for made in artifacts),
    )


def show_caveats(artifacts: Sequence[ArtifactOutcome]) -> None:
    """What results say of their own numbers, each sentence once."""
    found: dict[str, list[str]] = {}
    for made in artifacts:
        for text in made.result.get("caveats") or ():
            found.setdefault(str(text), []).append(made.stage)
    for text, stages in list(found.items())[:MOST_CAVEATS]:
        write_line(f"{', '.join(dict.fromkeys(stages))}: {text}")
    if len(found) > MOST_CAVEATS:
        write_line(f"{len(found) - MOST_CAVEATS} more caveats are in the artifacts.")


def telling_columns(artifacts: Sequence[ArtifactOutcome]) -> list[tuple[str, str]]:
    """Stage and field of the numbers of all results that differ between sites (of a lone site: all), most telling first.

    The first of every stage come first, then the others; those of `TELLING` always before the rest. Of a number and
    its unbiased estimator only the latter is shown.
    """
    values: dict[tuple[str, str], list[Any]] = {}
    for made in artifacts:
        for field, value in numbers(made).items():
            values.setdefault((made.stage, field), []).append(value)
    found = [
        (stage, field)
        for (stage, field), seen in values.items()
        if (len(seen) == 1 or len(set(seen)) > 1) and (stage, f"{field}_unbiased") not in values
    ]
    first = [min((c for c in found if c[0] == s), key=_rank) for s in dict.fromkeys(s for s, _ in found)]
    return first + sorted((column for column in found if column not in first), key=_rank)


def _rank(column: tuple[str, str]) -> int:
    return TELLING.index(column[1]) if column[1] in TELLING else len(TELLING)


def numbers(made: ArtifactOutcome) -> dict[str, Cell]:
    """The numbers of a result, those that tell most also where they are not known."""
    return {
        k: v
        for k, v in made.result.items()
        if (isinstance(v, int | float) and not isinstance(v, bool))
        or (k in TELLING and (v is None or isinstance(v, bool)))
    }


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

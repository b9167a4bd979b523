"""What a run found, as tables for people: its captures, the numbers of its results that tell most, and where it all lies."""

from collections.abc import Sequence
from typing import Any

from pipelines.terminal import Cell, write_line, write_table
from schemas.outcome import ArtifactOutcome, RunOutcome
from tasks.store.location import Location


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
        about = f"{made.stage} at {made.place}" if made.place else made.stage
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
        groups.setdefault(tuple(made.place for made in group), []).extend(group)
    return list(groups.values())


def _by_site(artifacts: Sequence[ArtifactOutcome], most: int) -> None:
    """One row per site, at least one number of every stage."""
    stages = dict.fromkeys(made.stage for made in artifacts)
    columns = telling_columns(artifacts)[: max(most, len(stages))]
    if not columns:
        return
    fields = [field for _, field in columns]
    headings = [f if fields.count(f) == 1 else f"{stage} {f}" for stage, f in columns]
    sites = dict.fromkeys(made.place for made in artifacts)
    found = {(made.place, made.stage, k): v for made in artifacts for k, v in numbers(made).items()}
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
        ((made.stage, made.place, *(numbers(made).get(field) for field in columns)) for made in artifacts),
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

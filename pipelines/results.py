"""What a run found, as tables for people: its captures, the numbers of its results that tell most, and where it all lies."""

from collections.abc import Sequence
from typing import Any

from pipelines.terminal import Cell, write_line, write_table
from schemas.outcome import ArtifactOutcome, RunOutcome
from tasks.costs import cost_lines
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
    for line in cost_lines(outcome):
        write_line(f"{line}.")
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


DECIDED = ("discovered", "flagged", "n_alarms", "n_drifted", "lead")
"""Fields of results that are shown first, and where they are the same at all sites too: what a stage was asked."""
TELLING = (
    *DECIDED,
    "auroc",
    "fpr95_anomalous_positive",
    "fpr95_normal_positive",
    "first_alarm",
    "first_start",
    "largest_shift",
    "participation_ratio_unbiased",
    "participation_ratio",
    "effective_rank",
    "anisotropy",
    "components_90",
    "accuracy",
    "cka",
    "adjusted_rand",
    "silhouette",
    "rate_gain",
    "rate_gain_random",
    "bic",
    "agreement",
    "clusters",
    "eigengap",
    "residual_share",
    "one_subspace",
    "margin_mean",
    "explained",
    "share",
    "dimension",
    "twonn",
    "nc1",
    "vci",
    "cdnv",
    "equinorm",
    "nearest_is_label",
    "trustworthiness",
    "trustworthiness_pca",
    "kept",
    "kept_pca",
    "rank_correlation",
    "linear_correlation",
    "net",
    "constructive",
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
MOST_ROWS = 24
"""Of a table in a terminal."""


def show_results(artifacts: Sequence[ArtifactOutcome], most: int = 5) -> None:
    """The numbers that tell most, a table for each method, and what results say of themselves."""
    for method in dict.fromkeys(made.method for made in artifacts):
        _of_method([made for made in artifacts if made.method == method], most)
    show_caveats(artifacts)


def _of_method(artifacts: Sequence[ArtifactOutcome], most: int) -> None:
    """One row per site; where the method runs in several stages, one per stage and site."""
    stages = list(dict.fromkeys(made.stage for made in artifacts))
    columns = (
        _fields(artifacts)[:most]
        if len(stages) > 1
        else (telling_columns(artifacts) or _fields(artifacts))[:most]
    )
    if not columns:
        return
    method, shown = artifacts[0].method, artifacts[:MOST_ROWS]
    named = [(made.stage, made.place) if len(stages) > 1 else (made.place,) for made in shown]
    write_table(
        method if len(stages) > 1 else f"{stages[0]} ({method})",
        (*(("stage",) if len(stages) > 1 else ()), "site", *(field.replace("_", " ") for field in columns)),
        (
            (*names, *(numbers(made).get(field) for field in columns))
            for names, made in zip(named, shown, strict=True)
        ),
    )
    if len(artifacts) > MOST_ROWS:
        write_line(f"and {len(artifacts) - MOST_ROWS} more, in the report and in the answer of --json")


def _fields(artifacts: Sequence[ArtifactOutcome]) -> list[str]:
    """Names of the numbers of all results, most telling first."""
    return sorted(dict.fromkeys(field for made in artifacts for field in numbers(made)), key=_rank)


def show_caveats(artifacts: Sequence[ArtifactOutcome]) -> None:
    """What results say of their own numbers, each sentence once."""
    found: dict[str, list[ArtifactOutcome]] = {}
    for made in artifacts:
        for text in made.result.get("caveats") or ():
            found.setdefault(str(text), []).append(made)
    for text, of in list(found.items())[:MOST_CAVEATS]:
        stages = dict.fromkeys(made.stage for made in of)
        write_line(f"{', '.join(_stage_with_sites(stage, of, artifacts) for stage in stages)}: {text}")
    if len(found) > MOST_CAVEATS:
        write_line(f"{len(found) - MOST_CAVEATS} more caveats are in the artifacts.")


def _stage_with_sites(stage: str, of: Sequence[ArtifactOutcome], every: Sequence[ArtifactOutcome]) -> str:
    """The stage, with the sites that a caveat is of where it is not of all."""
    mine = [made.place for made in of if made.stage == stage]
    if len(mine) == sum(made.stage == stage for made in every):
        return stage
    more = f" and {len(mine) - 3} more" if len(mine) > 3 else ""
    return f"{stage} at {', '.join(mine[:3])}{more}"


def telling_columns(artifacts: Sequence[ArtifactOutcome]) -> list[str]:
    """The numbers of a stage's results that differ between sites (of a lone site: all) or say what was decided, most telling first.

    Of a number and its unbiased estimator only the latter is shown.
    """
    values: dict[str, list[Any]] = {}
    for made in artifacts:
        for field, value in numbers(made).items():
            values.setdefault(field, []).append(value)
    return [
        field
        for field in _fields(artifacts)
        if (len(values[field]) == 1 or len(set(values[field])) > 1 or field in DECIDED)
        and f"{field}_unbiased" not in values
    ]


def _rank(field: str) -> int:
    return TELLING.index(field) if field in TELLING else len(TELLING)


def numbers(made: ArtifactOutcome) -> dict[str, Cell]:
    """The numbers of a result, those that tell most also where they are not known."""
    return {
        k: v
        for k, v in made.result.items()
        if (isinstance(v, int | float) and not isinstance(v, bool))
        or (k in TELLING and (v is None or isinstance(v, bool)))
    }

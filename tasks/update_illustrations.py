"""Figures about updates with their words: how many directions they take, what they act on, and when the last ones are found."""

import numpy as np

from tasks import training_figures as draw
from tasks.figures import Vector, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.module_ranks import ModuleRank, ranks_by_module
from tasks.tables import short_site
from tasks.training_figures import Line, Panel
from tasks.training_values import (
    MOST_PANELS,
    Artifacts,
    by_site,
    counted,
    has_arrays,
    left_out,
    mean_text,
    result_of,
    smoothing,
    steps_of,
    vector_of,
)

MOST_MODULES = 48


def updates(artifacts: Artifacts) -> Illustration:
    """Ranks of updates over steps, beside those of shuffled entries."""
    groups = by_site(artifacts)
    panels = [_ranks(group[0]) for group in groups.values()]
    said = " ".join(f"{p.title}: {mean_text(p.lines[1].values)} of {p.limit:.0f} on average." for p in panels)
    return Illustration(
        "updates", "How many directions updates take", draw.over_steps(panels, "rank", log=True),
        "Singular values of each update that are not rounding, and the exponential of the entropy of their squares. Dashed: the same "
        f"entries in shuffled places.{smoothing(panels)}{left_out(artifacts, len(groups))}",
        f"Effective rank of updates over steps. {said}",
    )  # fmt: skip


def _ranks(a: StageArtifact) -> Panel:
    side = float(min(result_of(a)["rows"], result_of(a)["columns"]))
    lines = _rank_line(a, "rank"), _rank_line(a, "effective_rank")
    return Panel(short_site(a.site), lines, limit=side, limit_name="full rank", xlabel=counted(a))


def _rank_line(a: StageArtifact, name: str) -> Line:
    """Updates of zero are gaps; results of earlier versions have no null."""
    null = f"{name}_null"
    chance = _positive(vector_of(a, null)) if has_arrays(a, (null,)) else None
    return Line(name.replace("_", " "), _positive(vector_of(a, name)), steps_of(a), null=chance)


def _positive(values: Vector) -> Vector:
    return np.where(values > 0, values, np.nan)


def modules(artifacts: Artifacts) -> Illustration | None:
    """Of all modules at once, where they are more than have a panel of their own."""
    first = {a.site: a for a in reversed(artifacts) if result_of(a).get("effective_rank") is not None}
    found = [first[a.site] for a in artifacts if first.get(a.site) is a]
    if len(found) <= MOST_PANELS:
        return None
    shown = [
        ModuleRank(
            short_site(a.site), result_of(a)["effective_rank"], result_of(a).get("effective_rank_null")
        )
        for a in found[:MOST_MODULES]
    ]
    least, most = (pick(shown, key=lambda m: m.rank) for pick in (min, max))
    return Illustration(
        "modules", "How many directions updates take, module by module", ranks_by_module(shown),
        f"Effective rank of updates, mean over them; bars: of the same entries in shuffled places.{left_out(artifacts, len(shown))}",
        f"Effective ranks of {len(shown)} modules. The least is {short(least.rank)} at {least.site}, the most {short(most.rank)} at "
        f"{most.site}.",
    )  # fmt: skip


def activations(artifacts: Artifacts) -> Illustration:
    """Updates beside the leading components of what their layers take."""
    groups = by_site(artifacts)
    panels = [_acted_on(group[0]) for group in groups.values()]
    said = " ".join(
        f"{p.title}: {mean_text(line.values)} on average, {mean_text(line.null)} by chance."
        for p in panels
        for line in p.lines[:1]
        if line.null is not None
    )
    return Illustration(
        "activations", "Do updates act on the directions of the activations?", draw.over_steps(panels, "overlap, share"),
        "Overlap of each update's input side with the leading components of the layer's input, and the share of its energy that acts on "
        f"them. Dashed: random subspaces, and a random update.{smoothing(panels)}{left_out(artifacts, len(groups))}",
        f"Overlaps of updates with activations. {said}",
    )  # fmt: skip


def _acted_on(a: StageArtifact) -> Panel:
    energy, steps = vector_of(a, "energy"), steps_of(a)
    chance = np.full(len(energy), float(result_of(a)["energy_null"]))
    moved = np.where(np.isfinite(energy), 1.0, np.nan)
    lines = (
        Line("overlap", moved * vector_of(a, "overlap"), steps, null=moved * vector_of(a, "null")),
        Line("share of energy", energy, steps, null=chance),
    )
    return Panel(short_site(a.site), lines, limit=1.0, xlabel=counted(a))


def early(artifacts: Artifacts) -> Illustration:
    """When the last subspace shows."""
    groups = by_site(artifacts)
    panels = [_final(group[0]) for group in groups.values()]
    said = " ".join(
        f"{p.title}: {mean_text(p.lines[0].values[[len(p.lines[0].values) // 10]])} after a tenth of the steps, "
        f"{short(p.nulls[0])} by chance."
        for p in panels
    )
    return Illustration(
        "early", "When is the final subspace found?", draw.over_steps(panels, "overlap, share"),
        "Overlap of the leading subspace of all that was changed so far with that at the end, and the share of the change that it holds. "
        f"Dashed: the overlap of unrelated subspaces.{smoothing(panels)}{left_out(artifacts, len(groups))}",
        f"Overlap with the final subspace over steps. {said}",
    )  # fmt: skip


def _final(a: StageArtifact) -> Panel:
    moved = np.where(vector_of(a, "norm") > 0, 1.0, np.nan)
    lines = (
        Line("overlap with the end", moved * vector_of(a, "overlap"), steps_of(a)),
        Line("share of the leading directions", moved * vector_of(a, "concentration"), steps_of(a)),
    )
    null = float(result_of(a)["overlap_null"])
    return Panel(short_site(a.site), lines, (null,), limit=1.0, xlabel=counted(a))

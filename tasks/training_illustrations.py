"""Which figures of a training a page shows, with their words: one for each question that stages of family `gradients` answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks import training_figures as draw
from tasks.figures import Vector, percent, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.module_ranks import ModuleRank, ranks_by_module
from tasks.palette import CATEGORY
from tasks.tables import short_site
from tasks.training_figures import Line, Panel, Path, Reached

MOST_PANELS = 4
MOST_LINES = len(CATEGORY)
MOST_MODULES = 48

Artifacts = Sequence[StageArtifact]


def training_illustrations(artifacts: Artifacts) -> Iterator[Illustration]:
    """What can be drawn, in the order of NAMES."""
    for source in _FIGURES.values():
        group = [a for a in artifacts if a.artifact.stage.method == source.method and _has(a, source.arrays)]
        if group and (made := source.make(group)) is not None:
            yield made


def _has(a: StageArtifact, names: Sequence[str]) -> bool:
    return all(name in a.arrays and a.arrays[name].size for name in names)


def _by_site(artifacts: Artifacts) -> dict[str, list[StageArtifact]]:
    """The first few sites."""
    groups: dict[str, list[StageArtifact]] = {}
    for a in artifacts:
        groups.setdefault(a.site, []).append(a)
    return dict(list(groups.items())[:MOST_PANELS])


def _vector(a: StageArtifact, name: str) -> Vector:
    return np.asarray(a.arrays[name], dtype=np.float64)


def _steps(a: StageArtifact) -> Vector | None:
    """The steps of an artifact's rows, where they have some that rise."""
    if not _has(a, ("step",)):
        return None
    step = _vector(a, "step")
    known = step[np.isfinite(step)]
    return step if len(known) and bool((np.diff(known) > 0).all()) else None


def _counted(a: StageArtifact) -> str:
    """What is on the axis of steps."""
    return "row" if _steps(a) is None else "step"


def _smoothing(panels: Sequence[Panel]) -> str:
    some = any(draw.is_smoothed(line.values) for panel in panels for line in panel.lines)
    return " Thin: each row; thick: their running median." if some else ""


def _result(a: StageArtifact) -> dict[str, Any]:
    return a.artifact.result


def _more(artifacts: Artifacts, drawn: int) -> str:
    left_out = len(artifacts) - drawn
    return f" {left_out} further results are in the tables." if left_out > 0 else ""


def _mean(values: Vector) -> str:
    """Of what is a number."""
    known = values[np.isfinite(values)]
    return short(float(known.mean())) if len(known) else "nothing"


def _trajectory(artifacts: Artifacts) -> Illustration:
    first = [group[0] for group in _by_site(artifacts).values()][:3]
    paths = [
        Path(
            short_site(a.site), _vector(a, "share"), _vector(a, "null_share"), _vector(a, "null_low"),
            _vector(a, "null_high"), np.asarray(a.arrays["projection"], dtype=np.float64),
            _steps(a), _counted(a),
        )
        for a in first
    ]  # fmt: skip
    said = " ".join(
        f"{path.site}: the first component holds {percent(path.share[0])}, {percent(path.null[0])} of a random walk."
        for path in paths
    )
    return Illustration(
        "trajectory", "The path of the training, beside a random walk", draw.trajectories(paths),
        "A random walk in many dimensions has smooth leading components and a steep spectrum too: only what leaves the band (95 % of "
        f"walks with steps like these; it ends where those have no more dimensions) is more than that.{_more(artifacts, len(first))}",
        f"Principal components of trajectories. {said}",
    )  # fmt: skip


def _eigenspace(artifacts: Artifacts) -> Illustration:
    groups = {site: group[:MOST_LINES] for site, group in _by_site(artifacts).items()}
    panels = [
        Panel(
            short_site(site),
            tuple(Line(a.stage, _vector(a, "share"), _steps(a)) for a in group),
            tuple(dict.fromkeys(float(_result(a)["null"]) for a in group)),
            xlabel=_counted(group[0]),
        )
        for site, group in groups.items()
    ]
    said = " ".join(
        f"{a.stage} at {short_site(a.site)}: {percent(float(_result(a)['share']))} on average, {percent(float(_result(a)['null']))} "
        "by chance."
        for group in groups.values()
        for a in group
        if _result(a)["share"] is not None
    )
    return Illustration(
        "eigenspace", "Gradients in the leading eigenspace of the curvature",
        draw.over_steps(panels, "share of |g|²", log=True),
        "Share of each squared gradient that lies in the leading eigenvectors; one line for each Hessian, such as those of several moments "
        f"of a training. Dashed: a random direction.{_smoothing(panels)}{_more(artifacts, sum(map(len, groups.values())))}",
        f"Shares by row. {said}",
    )  # fmt: skip


def _subspaces(artifacts: Artifacts) -> Illustration:
    groups = _by_site(artifacts)
    panels = [_frozen(a) for a in (group[0] for group in groups.values())]
    said = " ".join(
        f"{p.title}: {_mean(p.lines[0].values)} between neighbours, {short(p.nulls[0])} by chance."
        for p in panels
    )
    return Illustration(
        "subspaces", "Do gradients stay in one subspace?", draw.over_steps(panels, "overlap"),
        "Overlap of the leading subspaces of gradients, each step's with the one before it, with the first and with the last. Dashed: "
        f"unrelated subspaces, with twice their standard deviation.{_smoothing(panels)}{_more(artifacts, len(groups))}",
        f"Overlaps over steps. {said}",
    )  # fmt: skip


def _frozen(a: StageArtifact) -> Panel:
    null, std = float(_result(a)["null"]), float(_result(a)["null_std"])
    adjacent, steps = _vector(a, "adjacent"), _steps(a)
    later = np.arange(1, len(adjacent) + 1, dtype=np.float64) if steps is None else steps[1:]
    return Panel(
        short_site(a.site),
        (
            Line("with the step before", adjacent, later),
            Line("with the first step", _vector(a, "to_first"), steps),
            Line("with the last step", _vector(a, "to_last"), steps),
        ),
        (null,),
        (max(null - 2 * std, 0.0), null + 2 * std),
        1.0,
        xlabel=_counted(a),
    )


def _updates(artifacts: Artifacts) -> Illustration:
    groups = _by_site(artifacts)
    panels = [_ranks(group[0]) for group in groups.values()]
    said = " ".join(f"{p.title}: {_mean(p.lines[1].values)} of {p.limit:.0f} on average." for p in panels)
    return Illustration(
        "updates", "How many directions updates take", draw.over_steps(panels, "rank", log=True),
        "Singular values of each update that are not rounding, and the exponential of the entropy of their squares. Dashed: the same "
        f"entries in shuffled places.{_smoothing(panels)}{_more(artifacts, len(groups))}",
        f"Effective rank of updates over steps. {said}",
    )  # fmt: skip


def _early(artifacts: Artifacts) -> Illustration:
    groups = _by_site(artifacts)
    panels = [_final(group[0]) for group in groups.values()]
    said = " ".join(
        f"{p.title}: {_mean(p.lines[0].values[[len(p.lines[0].values) // 10]])} after a tenth of the steps, "
        f"{short(p.nulls[0])} by chance."
        for p in panels
    )
    return Illustration(
        "early", "When is the final subspace found?", draw.over_steps(panels, "overlap, share"),
        "Overlap of the leading subspace of all that was changed so far with that at the end, and the share of the change that it holds. "
        f"Dashed: the overlap of unrelated subspaces.{_smoothing(panels)}{_more(artifacts, len(groups))}",
        f"Overlap with the final subspace over steps. {said}",
    )  # fmt: skip


def _ranks(a: StageArtifact) -> Panel:
    side = float(min(_result(a)["rows"], _result(a)["columns"]))
    lines = _rank_line(a, "rank"), _rank_line(a, "effective_rank")
    return Panel(short_site(a.site), lines, limit=side, limit_name="full rank", xlabel=_counted(a))


def _rank_line(a: StageArtifact, name: str) -> Line:
    """Updates of zero are gaps; results of earlier versions have no null."""
    null = f"{name}_null"
    chance = _positive(_vector(a, null)) if _has(a, (null,)) else None
    return Line(name.replace("_", " "), _positive(_vector(a, name)), _steps(a), null=chance)


def _positive(values: Vector) -> Vector:
    return np.where(values > 0, values, np.nan)


def _modules(artifacts: Artifacts) -> Illustration | None:
    """Of all modules at once, where they are more than have a panel of their own."""
    first = {a.site: a for a in reversed(artifacts) if _result(a).get("effective_rank") is not None}
    found = [first[a.site] for a in artifacts if first.get(a.site) is a]
    if len(found) <= MOST_PANELS:
        return None
    shown = [
        ModuleRank(short_site(a.site), _result(a)["effective_rank"], _result(a).get("effective_rank_null"))
        for a in found[:MOST_MODULES]
    ]
    least, most = (pick(shown, key=lambda m: m.rank) for pick in (min, max))
    return Illustration(
        "modules", "How many directions updates take, module by module", ranks_by_module(shown),
        f"Effective rank of updates, mean over them; bars: of the same entries in shuffled places.{_more(artifacts, len(shown))}",
        f"Effective ranks of {len(shown)} modules. The least is {short(least.rank)} at {least.site}, the most {short(most.rank)} at "
        f"{most.site}.",
    )  # fmt: skip


def _activations(artifacts: Artifacts) -> Illustration:
    groups = _by_site(artifacts)
    panels = [_acted_on(group[0]) for group in groups.values()]
    said = " ".join(
        f"{p.title}: {_mean(line.values)} on average, {_mean(line.null)} by chance."
        for p in panels
        for line in p.lines[:1]
        if line.null is not None
    )
    return Illustration(
        "activations", "Do updates act on the directions of the activations?", draw.over_steps(panels, "overlap, share"),
        "Overlap of each update's input side with the leading components of the layer's input, and the share of its energy that acts on "
        f"them. Dashed: random subspaces, and a random update.{_smoothing(panels)}{_more(artifacts, len(groups))}",
        f"Overlaps of updates with activations. {said}",
    )  # fmt: skip


def _acted_on(a: StageArtifact) -> Panel:
    energy, steps = _vector(a, "energy"), _steps(a)
    chance = np.full(len(energy), float(_result(a)["energy_null"]))
    moved = np.where(np.isfinite(energy), 1.0, np.nan)
    lines = (
        Line("overlap", moved * _vector(a, "overlap"), steps, null=moved * _vector(a, "null")),
        Line("share of energy", energy, steps, null=chance),
    )
    return Panel(short_site(a.site), lines, limit=1.0, xlabel=_counted(a))


def _final(a: StageArtifact) -> Panel:
    moved = np.where(_vector(a, "norm") > 0, 1.0, np.nan)
    lines = (
        Line("overlap with the end", moved * _vector(a, "overlap"), _steps(a)),
        Line("share of the leading directions", moved * _vector(a, "concentration"), _steps(a)),
    )
    null = float(_result(a)["overlap_null"])
    return Panel(short_site(a.site), lines, (null,), limit=1.0, xlabel=_counted(a))


def _eigenvalues(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_LINES]
    lines = [Line(a.stage, _vector(a, "eigenvalue"), error=_vector(a, "residual")) for a in shown]
    said = " ".join(f"{a.stage}: the largest is {short(float(_result(a)['largest']))}." for a in shown)
    return Illustration(
        "eigenvalues", "Curvature: leading eigenvalues", draw.eigenvalues(lines),
        "Of the mean loss over all samples. A bar says how far an eigenvalue of the matrix is at most from its point (its residual); where "
        f"none is seen it is smaller than the point.{_more(artifacts, len(shown))}",
        f"Leading eigenvalues of the curvature. {said}",
    )  # fmt: skip


def _density(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_PANELS]
    panels = [
        (a.stage, _vector(a, "grid"), _vector(a, "density"), _vector(a, "density_error")) for a in shown
    ]
    said = " ".join(
        f"{a.stage}: trace {short(float(_result(a)['trace']))} ± {short(float(_result(a)['trace_error']))}."
        for a in shown
    )
    return Illustration(
        "density", "Curvature: density of all eigenvalues", draw.densities(panels),
        f"Estimated from random vectors, logarithmic; the band is twice the standard error over them.{_more(artifacts, len(shown))}",
        f"Spectral densities of the curvature. {said}",
    )  # fmt: skip


def _dimension(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_PANELS]
    panels = [
        Reached(
            a.stage, "accuracy" if _result(a)["measure"] == "accuracy" else "loss, with a minus",
            _vector(a, "dimension"), _vector(a, "performance"), _vector(a, "performance_error"),
            *(float(_result(a)[name]) for name in ("start", "full", "target")),
        )
        for a in shown
    ]  # fmt: skip
    said = " ".join(f"{a.stage}: {_dimension_of(_result(a))}." for a in shown)
    seen = any(a.artifact.stage.config.get("holdout") == 0 for a in shown)
    where = (
        "samples, those that were trained on where `holdout` is 0"
        if seen
        else "samples that were not trained on"
    )
    return Illustration(
        "dimension", "How many directions the training needs", draw.dimensions(panels),
        f"Performance on {where}, with twice its standard error. {said}{_more(artifacts, len(shown))}",
        f"Performance by dimension of a random subspace. {said}",
    )  # fmt: skip


def _dimension_of(result: Mapping[str, Any]) -> str:
    if result["full"] <= result["start"]:
        return "full training is no better than the untrained network"
    if result["dimension"] is None:
        return "no tested subspace reaches the target"
    found = f"{result['dimension']:,} of {result['n_parameters']:,} directions reach the target"
    above, most = result["dimension_above"], result["dimension_most"]
    ends = [
        f"more than {above:,}" if above is not None else "",
        f"at most {most:,}" if most is not None else "",
    ]
    sure = " and ".join(end for end in ends if end)
    return f"{found} (95 %: {sure})" if sure else found


class Source(NamedTuple):
    """What a figure is made of."""

    method: str
    arrays: tuple[str, ...]
    """Without these an artifact is left to the tables."""
    make: Callable[[Artifacts], Illustration | None]


_FIGURES = {
    "trajectory": Source(
        "gradients.trajectory", ("share", "null_share", "null_low", "null_high", "projection"), _trajectory
    ),
    "eigenspace": Source("gradients.hessian_overlap", ("share",), _eigenspace),
    "subspaces": Source("gradients.dominant_overlap", ("adjacent", "to_first", "to_last"), _subspaces),
    "updates": Source("gradients.update_structure", ("rank", "effective_rank"), _updates),
    "modules": Source("gradients.update_structure", (), _modules),
    "activations": Source("gradients.update_activation_overlap", ("overlap", "null", "energy"), _activations),
    "early": Source("gradients.early_final", ("overlap", "concentration", "norm"), _early),
    "eigenvalues": Source("gradients.hessian", ("eigenvalue", "residual"), _eigenvalues),
    "density": Source("gradients.spectral_density", ("grid", "density", "density_error"), _density),
    "dimension": Source(
        "gradients.intrinsic_dimension", ("dimension", "performance", "performance_error"), _dimension
    ),
}
NAMES = tuple(_FIGURES)
"""Of the figures, in the order of the page."""

"""Which figures of a training a page shows, with their words: one for each question that stages of family `gradients` answer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tasks import training_figures as draw
from tasks import update_illustrations
from tasks.figures import percent, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.palette import CATEGORY
from tasks.tables import short_site
from tasks.training_figures import Line, Panel, Path, Reached
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

MOST_LINES = len(CATEGORY)


def training_illustrations(artifacts: Artifacts) -> Iterator[Illustration]:
    """What can be drawn, in the order of NAMES."""
    for source in _FIGURES.values():
        group = [
            a for a in artifacts if a.artifact.stage.method == source.method and has_arrays(a, source.arrays)
        ]
        if group and (made := source.make(group)) is not None:
            yield made


def _trajectory(artifacts: Artifacts) -> Illustration:
    first = [group[0] for group in by_site(artifacts).values()][:3]
    paths = [
        Path(
            short_site(a.site), vector_of(a, "share"), vector_of(a, "null_share"), vector_of(a, "null_low"),
            vector_of(a, "null_high"), np.asarray(a.arrays["projection"], dtype=np.float64),
            steps_of(a), counted(a),
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
        f"walks with steps like these; it ends where those have no more dimensions) is more than that.{left_out(artifacts, len(first))}",
        f"Principal components of trajectories. {said}",
    )  # fmt: skip


def _eigenspace(artifacts: Artifacts) -> Illustration:
    groups = {site: group[:MOST_LINES] for site, group in by_site(artifacts).items()}
    panels = [
        Panel(
            short_site(site),
            tuple(Line(a.stage, vector_of(a, "share"), steps_of(a)) for a in group),
            tuple(dict.fromkeys(float(result_of(a)["null"]) for a in group)),
            xlabel=counted(group[0]),
        )
        for site, group in groups.items()
    ]
    said = " ".join(
        f"{a.stage} at {short_site(a.site)}: {percent(float(result_of(a)['share']))} on average, {percent(float(result_of(a)['null']))} "
        "by chance."
        for group in groups.values()
        for a in group
        if result_of(a)["share"] is not None
    )
    return Illustration(
        "eigenspace", "Gradients in the leading eigenspace of the curvature",
        draw.over_steps(panels, "share of |g|²", log=True),
        "Share of each squared gradient that lies in the leading eigenvectors; one line for each Hessian, such as those of several moments "
        f"of a training. Dashed: a random direction.{smoothing(panels)}{left_out(artifacts, sum(map(len, groups.values())))}",
        f"Shares by row. {said}",
    )  # fmt: skip


def _subspaces(artifacts: Artifacts) -> Illustration:
    groups = by_site(artifacts)
    panels = [_frozen(a) for a in (group[0] for group in groups.values())]
    said = " ".join(
        f"{p.title}: {mean_text(p.lines[0].values)} between neighbours, {short(p.nulls[0])} by chance."
        for p in panels
    )
    return Illustration(
        "subspaces", "Do gradients stay in one subspace?", draw.over_steps(panels, "overlap"),
        "Overlap of the leading subspaces of gradients, each step's with the one before it, with the first and with the last. Dashed: "
        f"unrelated subspaces, with twice their standard deviation.{smoothing(panels)}{left_out(artifacts, len(groups))}",
        f"Overlaps over steps. {said}",
    )  # fmt: skip


def _frozen(a: StageArtifact) -> Panel:
    null, std = float(result_of(a)["null"]), float(result_of(a)["null_std"])
    adjacent, steps = vector_of(a, "adjacent"), steps_of(a)
    later = np.arange(1, len(adjacent) + 1, dtype=np.float64) if steps is None else steps[1:]
    return Panel(
        short_site(a.site),
        (
            Line("with the step before", adjacent, later),
            Line("with the first step", vector_of(a, "to_first"), steps),
            Line("with the last step", vector_of(a, "to_last"), steps),
        ),
        (null,),
        (max(null - 2 * std, 0.0), null + 2 * std),
        1.0,
        xlabel=counted(a),
    )


def _eigenvalues(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_LINES]
    lines = [Line(a.stage, vector_of(a, "eigenvalue"), error=vector_of(a, "residual")) for a in shown]
    said = " ".join(f"{a.stage}: the largest is {short(float(result_of(a)['largest']))}." for a in shown)
    return Illustration(
        "eigenvalues", "Curvature: leading eigenvalues", draw.eigenvalues(lines),
        "Of the mean loss over all samples. A bar says how far an eigenvalue of the matrix is at most from its point (its residual); where "
        f"none is seen it is smaller than the point.{left_out(artifacts, len(shown))}",
        f"Leading eigenvalues of the curvature. {said}",
    )  # fmt: skip


def _density(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_PANELS]
    panels = [
        (a.stage, vector_of(a, "grid"), vector_of(a, "density"), vector_of(a, "density_error")) for a in shown
    ]
    said = " ".join(
        f"{a.stage}: trace {short(float(result_of(a)['trace']))} ± {short(float(result_of(a)['trace_error']))}."
        for a in shown
    )
    return Illustration(
        "density", "Curvature: density of all eigenvalues", draw.densities(panels),
        f"Estimated from random vectors, logarithmic; the band is twice the standard error over them.{left_out(artifacts, len(shown))}",
        f"Spectral densities of the curvature. {said}",
    )  # fmt: skip


def _dimension(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_PANELS]
    panels = [
        Reached(
            a.stage, "accuracy" if result_of(a)["measure"] == "accuracy" else "loss, with a minus",
            vector_of(a, "dimension"), vector_of(a, "performance"), vector_of(a, "performance_error"),
            *(float(result_of(a)[name]) for name in ("start", "full", "target")),
        )
        for a in shown
    ]  # fmt: skip
    said = " ".join(f"{a.stage}: {_dimension_of(result_of(a))}." for a in shown)
    seen = any(a.artifact.stage.config.get("holdout") == 0 for a in shown)
    where = (
        "samples, those that were trained on where `holdout` is 0"
        if seen
        else "samples that were not trained on"
    )
    return Illustration(
        "dimension", "How many directions the training needs", draw.dimensions(panels),
        f"Performance on {where}, with twice its standard error. {said}{left_out(artifacts, len(shown))}",
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
    "updates": Source("gradients.update_structure", ("rank", "effective_rank"), update_illustrations.updates),
    "modules": Source("gradients.update_structure", (), update_illustrations.modules),
    "activations": Source(
        "gradients.update_activation_overlap", ("overlap", "null", "energy"), update_illustrations.activations
    ),
    "early": Source(
        "gradients.early_final", ("overlap", "concentration", "norm"), update_illustrations.early
    ),
    "eigenvalues": Source("gradients.hessian", ("eigenvalue", "residual"), _eigenvalues),
    "density": Source("gradients.spectral_density", ("grid", "density", "density_error"), _density),
    "dimension": Source(
        "gradients.intrinsic_dimension", ("dimension", "performance", "performance_error"), _dimension
    ),
}
NAMES = tuple(_FIGURES)
"""Of the figures, in the order of the page."""

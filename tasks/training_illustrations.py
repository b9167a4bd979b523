"""Which figures of a training a page shows, with their words: one for each question that stages of family `gradients` answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks import training_figures as draw
from tasks.figures import Vector, percent, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.palette import CATEGORY
from tasks.tables import short_site
from tasks.training_figures import Line, Panel, Path, Reached

MOST_PANELS = 4
MOST_LINES = len(CATEGORY)
NAMES = ("trajectory", "eigenspace", "subspaces", "updates", "early", "eigenvalues", "density", "dimension")
"""Of the figures, in the order of the page."""

Artifacts = Sequence[StageArtifact]


def training_illustrations(artifacts: Artifacts) -> Iterator[Illustration]:
    """What can be drawn, in the order of NAMES."""
    groups: dict[Callable[[Artifacts], Illustration], list[StageArtifact]] = {
        make: [] for make, _ in _NEEDED.values()
    }
    for a in artifacts:
        make, names = _NEEDED.get(a.artifact.stage.method, (None, ()))
        if make is not None and all(name in a.arrays and a.arrays[name].size for name in names):
            groups[make].append(a)
    yield from (make(group) for make, group in groups.items() if group)


def _by_site(artifacts: Artifacts) -> dict[str, list[StageArtifact]]:
    """The first few sites."""
    groups: dict[str, list[StageArtifact]] = {}
    for a in artifacts:
        groups.setdefault(a.site, []).append(a)
    return dict(list(groups.items())[:MOST_PANELS])


def _vector(a: StageArtifact, name: str) -> Vector:
    return np.asarray(a.arrays[name], dtype=np.float64)


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
            tuple(Line(a.stage, _vector(a, "share")) for a in group),
            tuple(dict.fromkeys(float(_result(a)["null"]) for a in group)),
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
        draw.over_steps(panels, "share of |g|²", log=True, xlabel="row: recorded step, or sample"),
        "Share of each squared gradient that lies in the leading eigenvectors; one line for each Hessian, such as those of several moments "
        f"of a training. Dashed: a random direction.{_more(artifacts, sum(map(len, groups.values())))}",
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
        f"unrelated subspaces, with twice their standard deviation.{_more(artifacts, len(groups))}",
        f"Overlaps over steps. {said}",
    )  # fmt: skip


def _frozen(a: StageArtifact) -> Panel:
    null, std = float(_result(a)["null"]), float(_result(a)["null_std"])
    adjacent = _vector(a, "adjacent")
    return Panel(
        short_site(a.site),
        (
            Line("with the step before", adjacent, np.arange(1, len(adjacent) + 1, dtype=np.float64)),
            Line("with the first step", _vector(a, "to_first")),
            Line("with the last step", _vector(a, "to_last")),
        ),
        (null,),
        (max(null - 2 * std, 0.0), null + 2 * std),
        1.0,
    )


def _updates(artifacts: Artifacts) -> Illustration:
    groups = _by_site(artifacts)
    panels = [_ranks(group[0]) for group in groups.values()]
    said = " ".join(f"{p.title}: {_mean(p.lines[1].values)} of {p.limit:.0f} on average." for p in panels)
    return Illustration(
        "updates", "How many directions updates take", draw.over_steps(panels, "rank", log=True),
        "Singular values of each update that are not rounding, and the exponential of the entropy of their squares. The axis ends at full "
        f"rank.{_more(artifacts, len(groups))}",
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
        f"Dashed: the overlap of unrelated subspaces.{_more(artifacts, len(groups))}",
        f"Overlap with the final subspace over steps. {said}",
    )  # fmt: skip


def _ranks(a: StageArtifact) -> Panel:
    side = float(min(_result(a)["rows"], _result(a)["columns"]))
    lines = Line("rank", _vector(a, "rank")), Line("effective rank", _vector(a, "effective_rank"))
    return Panel(short_site(a.site), lines, limit=side)


def _final(a: StageArtifact) -> Panel:
    moved = np.where(_vector(a, "norm") > 0, 1.0, np.nan)
    lines = (
        Line("overlap with the end", moved * _vector(a, "overlap")),
        Line("share of the leading directions", moved * _vector(a, "concentration")),
    )
    return Panel(short_site(a.site), lines, (float(_result(a)["overlap_null"]),), limit=1.0)


def _eigenvalues(artifacts: Artifacts) -> Illustration:
    shown = artifacts[:MOST_LINES]
    lines = [Line(a.stage, _vector(a, "eigenvalue"), error=_vector(a, "residual")) for a in shown]
    said = " ".join(f"{a.stage}: the largest is {short(float(_result(a)['largest']))}." for a in shown)
    return Illustration(
        "eigenvalues", "Curvature: leading eigenvalues", draw.eigenvalues(lines),
        "Of the mean loss over all samples. A bar says how far an eigenvalue of the matrix is at most from its point (its residual)."
        f"{_more(artifacts, len(shown))}",
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


_NEEDED = {
    "gradients.trajectory": (_trajectory, ("share", "null_share", "null_low", "null_high", "projection")),
    "gradients.hessian_overlap": (_eigenspace, ("share",)),
    "gradients.dominant_overlap": (_subspaces, ("adjacent", "to_first", "to_last")),
    "gradients.update_structure": (_updates, ("rank", "effective_rank")),
    "gradients.early_final": (_early, ("overlap", "concentration", "norm")),
    "gradients.hessian": (_eigenvalues, ("eigenvalue", "residual")),
    "gradients.spectral_density": (_density, ("grid", "density", "density_error")),
    "gradients.intrinsic_dimension": (_dimension, ("dimension", "performance", "performance_error")),
}
"""Method -> what draws it, and the arrays that this takes."""

"""Figures of clusters with their words: how much they have to do with each other, and the spectra that tell their number or dimensions."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.figures import HEAT, WIDTH, Vector, color_bar, frame, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.palette import CATEGORY, MUTED, PAPER
from tasks.tables import short_site

CLUSTERS = "clusters-"
"""What names of these figures begin with."""
MOST_SITES = 3
MOST_LINES = 40
PAIRS = {"between": "share of edges", "affinity": "root mean square cosine"}
"""Arrays with a number for each two clusters, and what it is."""


def cluster_illustrations(artifacts: Sequence[StageArtifact]) -> Iterator[Illustration]:
    """One for each stage that found clusters."""
    stages: dict[str, list[StageArtifact]] = {}
    for made in artifacts:
        if _pairs(made) is not None:
            stages.setdefault(made.stage, []).append(made)
    for stage, group in stages.items():
        yield _illustration(stage, group[:MOST_SITES], len(group))


def _pairs(made: StageArtifact) -> str | None:
    """The name of the array between clusters, of methods of the family."""
    if not made.artifact.stage.method.startswith("clustering."):
        return None
    return next(
        (name for name in PAIRS if made.arrays.get(name) is not None and len(made.arrays[name]) > 1), None
    )


def _illustration(stage: str, group: Sequence[StageArtifact], n: int) -> Illustration:
    name = _pairs(group[0]) or ""
    figure = Figure((WIDTH, 0.3 + 3.1 * len(group)), layout="constrained")
    for (left, right), made in zip(figure.subplots(len(group), 2, squeeze=False), group, strict=True):
        _heat(figure, left, made.arrays[name], f"{short_site(made.site)}: {PAIRS[name]}")
        _spectrum(right, made)
    what = (
        "Share of each cluster's edges that lead into each cluster; light off the diagonal: clusters that stand apart."
        if name == "between"
        else "Cosines between subspaces: 1 where one holds the other, 0 at right angles."
    )
    rest = f" The first {len(group)} of {n} sites." if n > len(group) else ""
    said = " ".join(f"{short_site(made.site)}: {_said(made, name)}" for made in group)
    return Illustration(
        f"{CLUSTERS}{stage}", f"Clusters ({stage})", figure, f"{what} {_about(group[0])}{rest}", said
    )


def _said(made: StageArtifact, name: str) -> str:
    values = np.asarray(made.arrays[name], dtype=np.float64)
    away = values[~np.eye(len(values), dtype=bool)]
    return (
        f"{len(values)} clusters, {PAIRS[name]} between two from {short(away.min())} to {short(away.max())}."
    )


def _about(made: StageArtifact) -> str:
    spectrum = made.arrays.get("eigenvalue")
    if spectrum is None:
        return ""
    if spectrum.ndim == 1:
        return "Right: smallest eigenvalues of the graph's Laplacian; a jump after as many as there are clusters tells their number."
    return "Right: variances of each cluster's rows along their own principal directions; a fall tells how many directions it takes."


def _heat(figure: Figure, axes: Axes, values: Vector, title: str) -> None:
    mesh = axes.pcolormesh(
        values, cmap=HEAT, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1 if len(values) <= 32 else 0
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    frame(axes, title=title)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    every = max(1, -(-len(values) // 16))
    at = np.arange(0, len(values), every)
    axes.set_xticks(at + 0.5, [str(k) for k in at])
    axes.set_yticks(at + 0.5, [str(k) for k in at])
    color_bar(figure, axes, mesh)


def _spectrum(axes: Axes, made: StageArtifact) -> None:
    """Eigenvalues of the graph with the chosen number, or spectra of clusters."""
    values = made.arrays.get("eigenvalue")
    if values is None:
        axes.set_visible(False)
        return
    if values.ndim == 1:
        axes.plot(
            np.arange(1, len(values) + 1), values, marker="o", markersize=3, linewidth=1, color=CATEGORY[0]
        )
        axes.axvline(made.artifact.result["clusters"] + 0.5, color=MUTED, linewidth=1, linestyle="--")
        frame(axes, title="eigenvalues of the graph", xlabel="order; dashed: the clusters")
        return
    for k, row in enumerate(values[:MOST_LINES]):
        some = row[row > 1e-9 * max(float(row.max()), 1e-300)]
        axes.plot(
            np.arange(1, len(some) + 1), some, linewidth=1, color=CATEGORY[k % len(CATEGORY)], alpha=0.8
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    frame(axes, title="spectra of the clusters", xlabel="order")

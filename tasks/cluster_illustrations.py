"""Figures of clusters with their words: how much they have to do with each other, and the spectra that tell their number or dimensions."""

from collections.abc import Callable, Iterator, Sequence

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
Panel = Callable[[Figure, Axes, StageArtifact], None]
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
    lines = sum(-(-len(_panels(made)) // 2) for made in group)
    figure = Figure((WIDTH, 0.3 + 3.1 * lines), layout="constrained")
    places = iter(figure.subplots(lines, 2, squeeze=False).flat)
    for made in group:
        panels = _panels(made)
        for panel in panels:
            panel(figure, next(places), made)
        for _ in range(len(panels) % 2):
            next(places).set_visible(False)
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


def _panels(made: StageArtifact) -> list[Panel]:
    """What is drawn of an artifact."""
    wanted: list[tuple[str, Panel]] = [
        ("ordered", _ordered),
        ("eigenvalue", _spectrum),
        ("agreement", _agreement),
    ]
    return [_between, *(panel for name, panel in wanted if made.arrays.get(name) is not None)]


def _said(made: StageArtifact, name: str) -> str:
    values = np.asarray(made.arrays[name], dtype=np.float64)
    away = values[~np.eye(len(values), dtype=bool)]
    return (
        f"{len(values)} clusters, {PAIRS[name]} between two from {short(away.min())} to {short(away.max())}."
    )


def _about(made: StageArtifact) -> str:
    notes = []
    if made.arrays.get("ordered") is not None:
        notes.append(
            "Pairs of rows in the order of clusters: weights of edges, dark squares along the diagonal are clusters."
        )
    spectrum = made.arrays.get("eigenvalue")
    if spectrum is not None and spectrum.ndim == 1 and spectrum[0] > spectrum[-1]:
        notes.append(
            "Leading eigenvalues of what the objective splits: a fall after as many as there are clusters tells their number."
        )
    elif spectrum is not None and spectrum.ndim == 1:
        notes.append(
            "Smallest eigenvalues of the graph's Laplacian: a jump after as many as there are clusters tells their number."
        )
    elif spectrum is not None:
        notes.append(
            "Variances of each cluster's rows along their own principal directions: a fall tells how many directions it takes."
        )
    if made.arrays.get("agreement") is not None:
        notes.append("Agreement of clusterings of parts of the rows: 1 where they are the same, 0 by chance.")
    return " ".join(notes)


def _between(figure: Figure, axes: Axes, made: StageArtifact) -> None:
    name = _pairs(made) or ""
    _heat(figure, axes, made.arrays[name], f"{short_site(made.site)}: {PAIRS[name]}")


def _ordered(figure: Figure, axes: Axes, made: StageArtifact) -> None:
    """Roots of mean weights, so that single edges show, with the clusters' borders."""
    values = np.sqrt(np.asarray(made.arrays["ordered"], dtype=np.float64))
    top = float(np.quantile(values[values > 0], 0.98)) if (values > 0).any() else 1.0
    axes.imshow(values, cmap=HEAT, vmin=0, vmax=top, interpolation="nearest", aspect="equal")
    size = made.arrays.get("size")
    if size is not None and len(size) <= MOST_LINES:
        for end in np.cumsum(size)[:-1] / size.sum() * len(values) - 0.5:
            axes.axhline(end, color=MUTED, linewidth=0.4)
            axes.axvline(end, color=MUTED, linewidth=0.4)
    frame(axes, title="edges, rows in the order of clusters")
    axes.set_xticks([])
    axes.set_yticks([])


def _agreement(figure: Figure, axes: Axes, made: StageArtifact) -> None:
    """With standard errors, and the number that was found."""
    mean, error = (np.asarray(made.arrays[name]) for name in ("agreement", "error"))
    number = np.arange(2, len(mean) + 2)
    axes.errorbar(
        number, mean, yerr=error, marker="o", markersize=3, linewidth=1, color=CATEGORY[0], capsize=2
    )
    axes.axvline(made.artifact.result["clusters"], color=MUTED, linewidth=1, linestyle="--")
    frame(axes, title="agreement of parts", xlabel="number of clusters; dashed: the most stable")


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


def _spectrum(figure: Figure, axes: Axes, made: StageArtifact) -> None:
    """Eigenvalues of the graph with the chosen number, or spectra of clusters."""
    values = made.arrays["eigenvalue"]
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
    if (values > 0).any():  # else each cluster is one point
        axes.set_xscale("log")
        axes.set_yscale("log")
    frame(axes, title="spectra of the clusters", xlabel="order")

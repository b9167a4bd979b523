"""What the clusters of a stage look like: the samples that each subspace holds best, as images where they are images, and as a table."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tasks.figures import WIDTH
from tasks.illustrations import Illustration
from tasks.palette import INK, MUTED
from tasks.tables import Cell, Table, short_site

EXAMPLES = "examples-"
"""What names of these figures begin with."""
IMAGES, COLUMNS = 8, 3
"""Examples of a cluster that are drawn, and that are written."""


class Shown(NamedTuple):
    """A sample, so that a person can tell what it is."""

    key: str
    text: str | None = None
    """Its beginning, for texts."""
    image: npt.NDArray[np.float64] | None = None
    """[height, width] or [height, width, 3] in 0..1, for what is an image."""


class ClusterExamples(NamedTuple):
    """One cluster."""

    number: int
    rows: int
    silhouette: float
    misplaced: float
    examples: tuple[Shown, ...]
    """Those of largest silhouette first."""
    doubtful: tuple[Shown, ...]
    """Those of least silhouette first."""


class StageExamples(NamedTuple):
    """The clusters of a stage at a site."""

    stage: str
    site: str
    clusters: tuple[ClusterExamples, ...]
    n_clusters: int
    """Of which those are the first."""


def example_illustrations(found: Sequence[StageExamples]) -> Iterator[Illustration]:
    """One for each stage and site whose samples are images."""
    for number, made in enumerate(found):
        if any(shown.image is not None for cluster in made.clusters for shown in cluster.examples):
            yield _illustration(made, number)


def example_tables(found: Sequence[StageExamples]) -> Iterator[Table]:
    """One for each stage and site."""
    for made in found:
        headings = (
            ("Cluster", ""), ("Rows", ""), ("Silhouette", "mean: 1 inside the own subspace alone, 0 between two"),
            ("Misplaced", "share of rows that another subspace is nearer to"),
            *((f"Example {n + 1}", "large silhouettes") for n in range(COLUMNS)),
            ("Most doubtful", "least silhouette"),
        )  # fmt: skip
        title = f"Clusters and their examples ({made.stage}, {short_site(made.site)})"
        rest = made.n_clusters - len(made.clusters)
        notes = (f"{rest} smaller clusters are in the artifact.",) if rest else ()
        yield Table(title, headings, tuple(_row(cluster) for cluster in made.clusters), notes)


def _row(cluster: ClusterExamples) -> tuple[Cell, ...]:
    numbers = (
        Cell(str(cluster.number), numeric=False),
        Cell(f"{cluster.rows:,}"),
        Cell(f"{cluster.silhouette:.2f}"),
        Cell(f"{cluster.misplaced:.1%}"),
    )
    nearest = [*cluster.examples[:COLUMNS], *[None] * COLUMNS][:COLUMNS]
    return (*numbers, *(_cell(shown) for shown in (*nearest, next(iter(cluster.doubtful), None))))


def _cell(shown: Shown | None) -> Cell:
    if shown is None:
        return Cell("–", numeric=False)
    return Cell(shown.text or shown.key, note=shown.key if shown.text else "", numeric=False)


def _illustration(made: StageExamples, number: int) -> Illustration:
    lines = len(made.clusters)
    height = 0.3 + lines * WIDTH / (2 * IMAGES + 2)
    figure = Figure((WIDTH, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.25 / height)))
    grid = figure.subplots(lines, 2 * IMAGES + 2, squeeze=False)
    for row, cluster in zip(grid, made.clusters, strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, shown in zip(row[1:], cluster.examples, strict=False):
            _image(axes, shown)
        for axes, shown in zip(row[IMAGES + 2 :], cluster.doubtful, strict=False):
            _image(axes, shown)
        row[0].text(0.9, 0.5, str(cluster.number), ha="right", va="center", color=INK, fontsize=9)
    for column, title in (
        (1, "far nearer to this subspace than to any other"),
        (IMAGES + 2, "most doubtful"),
    ):
        axes = grid[0][column]
        axes.text(0, 1.12, title, transform=axes.transAxes, color=MUTED, fontsize=9).set_in_layout(False)
    where = short_site(made.site)
    rest = made.n_clusters - lines
    return Illustration(
        f"{EXAMPLES}{made.stage}-{number}",
        f"Examples of clusters ({made.stage}, {where})",
        figure,
        "A line for each cluster. Left: samples far nearer to its subspace than to any other; right: samples that another holds about as "
        f"well, or better.{f' {rest} smaller clusters are in the artifact.' if rest else ''}",
        "; ".join(
            f"cluster {c.number}: {', '.join(s.key for s in c.examples[:COLUMNS])}" for c in made.clusters
        )
        + ".",
    )


def _image(axes: Axes, shown: Shown) -> None:
    if shown.image is not None:
        axes.imshow(shown.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")

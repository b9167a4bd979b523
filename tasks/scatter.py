"""The figures of maps: samples on two components, and points of several sites on maps beside each other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from tasks.figures import WIDTH, Vector, frame, percent, shortened
from tasks.palette import CATEGORY, GREY, INK, MUTED, PAPER


class Dots(NamedTuple):
    """Samples on two axes."""

    xy: Vector
    """[sample, 2]"""
    names: tuple[str, ...]
    """Class names, largest class first."""
    codes: npt.NDArray[np.int64]
    """[sample]: index into `names`, -1 for the rest."""
    shares: tuple[float, float] | None = None
    """Share of variance along each axis."""
    n_rest: int = 0
    """Number of classes in the rest."""


class Panel(NamedTuple):
    """One of several maps."""

    title: str
    side: str
    """Written along it."""
    dots: Dots
    note: str
    """Below it."""


def sample_map(dots: Dots) -> Figure:
    """Samples on their first two components, coloured by class; classes are named at their median."""
    figure = Figure((WIDTH, 6.0), layout="constrained")
    axes = figure.subplots()
    _classes(axes, dots, 2.2 if len(dots.xy) > 1500 else 3.4)
    _class_names(axes, dots)
    shares = dots.shares or (np.nan, np.nan)
    names = [
        f"component {i + 1}" + (f" ({percent(s)} of variance)" if np.isfinite(s) else "")
        for i, s in enumerate(shares)
    ]
    frame(axes, xlabel=names[0])
    axes.set_ylabel(names[1], color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])
    _class_key(axes, dots)
    return figure


def panels(grid: Sequence[Sequence[Panel]]) -> Figure:
    """Maps in rows of equal length, with one key of classes, those of the first."""
    lines, columns = len(grid), len(grid[0])
    height = 0.7 + lines * min(WIDTH / columns, 3.6)
    figure = Figure((WIDTH, height), layout="constrained")
    for row, given in zip(figure.subplots(lines, columns, squeeze=False), grid, strict=True):
        for axes, panel in zip(row, given, strict=True):
            _classes(axes, panel.dots, 2.2 if columns < 3 else 1.5)
            frame(axes, title=shortened(panel.title, 64 // columns), xlabel=panel.note)
            axes.xaxis.label.set_fontsize(8)
            axes.set_ylabel(panel.side, color=MUTED)
            axes.set_xticks([])
            axes.set_yticks([])
    names = [shortened(name, 22) for name in grid[0][0].dots.names]
    marks = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=CATEGORY[i % len(CATEGORY)])
        for i in range(len(names))
    ]
    if names:
        figure.legend(
            marks, names, loc="outside lower left", ncols=5, frameon=False, labelcolor=INK, fontsize=8.5
        )
    return figure


def _classes(axes: Axes, dots: Dots, size: float) -> None:
    """The rest in grey, then classes, the largest last."""
    _dots(axes, dots.xy[dots.codes < 0], GREY, size, 0.55)
    for index in reversed(range(len(dots.names))):
        _dots(axes, dots.xy[dots.codes == index], CATEGORY[index % len(CATEGORY)], size, 0.8)
    _limits(axes, dots.xy)


def _dots(axes: Axes, xy: Vector, color: str, size: float, alpha: float) -> None:
    """All dots of a class as one path of round line ends: small in a file, and one colour to change."""
    if len(xy) == 0:
        return
    points = np.repeat(xy, 2, axis=0)
    points[1::2, 0] += 1e-6 * (np.ptp(xy[:, 0]) or 1.0)  # a line without length is not drawn in a PNG
    codes = np.tile(np.array([Path.MOVETO, Path.LINETO], dtype=np.uint8), len(xy))
    path = Path(points, codes)
    path.should_simplify = False
    axes.add_patch(
        PathPatch(
            path, edgecolor=color, facecolor="none", linewidth=size, alpha=alpha, capstyle="round", snap=False
        )
    )


def _limits(axes: Axes, xy: Vector) -> None:
    """Axes around all but the farthest half percent, so that single samples do not squeeze the rest."""
    low, high = np.percentile(xy, [0.25, 99.75], axis=0)
    margin = np.maximum((high - low) * 0.06, 1e-9)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _class_names(axes: Axes, dots: Dots) -> None:
    """Each class named at its median; names that would touch are pushed apart vertically."""
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    medians = [np.median(dots.xy[dots.codes == i], axis=0) for i in range(len(dots.names))]
    places = [(median - low) / (high - low) for median in medians]
    for index in (order := sorted(range(len(places)), key=lambda i: -places[i][1])):
        for other in order[: order.index(index)]:
            near = abs(places[other][0] - places[index][0]) < 0.16
            if near and places[other][1] - places[index][1] < 0.04:
                places[index] = np.array([places[index][0], places[other][1] - 0.04])
    for index, (x, y) in enumerate(places):
        text = axes.text(
            x, y, shortened(dots.names[index], 22), transform=axes.transAxes, ha="center", va="center"
        )
        text.set(fontsize=9, weight="bold", color=CATEGORY[index % len(CATEGORY)])
        text.set_path_effects([withStroke(linewidth=3, foreground=PAPER)])


def _class_key(axes: Axes, dots: Dots) -> None:
    """Names beside the map, each with its dot and count."""
    entries = [
        (name, CATEGORY[i % len(CATEGORY)], int(np.count_nonzero(dots.codes == i)))
        for i, name in enumerate(dots.names)
    ]
    rest = int(np.count_nonzero(dots.codes < 0))
    if rest and dots.names:
        entries.append((f"{dots.n_rest} others" if dots.n_rest else "no label", GREY, rest))
    for index, (name, color, count) in enumerate(entries):
        y = 0.985 - index * 0.048
        axes.plot(
            [1.02], [y - 0.008], "o", color=color, markersize=6, transform=axes.transAxes, clip_on=False
        )
        axes.text(1.035, y, shortened(name, 22), transform=axes.transAxes, va="top", color=INK, fontsize=9)
        axes.text(
            1.25, y, f"{count:,}", transform=axes.transAxes, va="top", ha="right", color=MUTED, fontsize=8.5
        )

"""Figures of a training and of a loss's curvature, each beside what chance gives. Nothing is read or written here."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from tasks.figures import WIDTH, Vector, frame, shortened
from tasks.palette import CATEGORY, GREY, GRID, INK, MUTED, PAPER

NULL: dict[str, Any] = {"color": MUTED, "linewidth": 1.3, "linestyle": (0, (4, 2))}
SMOOTH = 25
"""A line over steps is drawn with the running median of this part of them."""


class Line(NamedTuple):
    """A number over steps, or over whatever a panel counts."""

    label: str
    values: Vector
    x: Vector | None = None
    """None: 0, 1, 2, ..."""
    error: Vector | None = None
    """Bars of this length to both sides."""
    null: Vector | None = None
    """What chance gives for each value, dashed in the line's colour."""


class Panel(NamedTuple):
    """Lines with one null."""

    title: str
    lines: tuple[Line, ...]
    nulls: tuple[float, ...] = ()
    """What chance gives; several where lines differ in it."""
    band: tuple[float, float] | None = None
    """Where chance mostly lies."""
    limit: float | None = None
    """The most that there can be."""
    limit_name: str = ""
    """Drawn as a line where it has one."""
    xlabel: str = "step"


class Path(NamedTuple):
    """A trajectory in its principal components."""

    site: str
    share: Vector
    null: Vector
    low: Vector
    high: Vector
    projection: npt.NDArray[np.float64]
    """[step, component]"""
    x: Vector | None = None
    """Steps; None: 0, 1, 2, ..."""
    xlabel: str = "step"


def over_steps(panels: Sequence[Panel], ylabel: str, log: bool = False) -> Figure:
    """A panel for each site, a line for each stage, chance dashed. Logarithmic panels share their axis."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure((WIDTH, 0.7 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=log)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _over_steps(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel, color=MUTED)
    used = list(grid.flat[: len(panels)])
    _limits(used, panels, log)
    _legends(figure, used, panels)
    return figure


def _over_steps(axes: Axes, panel: Panel) -> None:
    if panel.limit_name and panel.limit is not None:
        axes.axhline(panel.limit, color=GREY, linewidth=3.5, label=panel.limit_name, zorder=1)
    for line, color in zip(panel.lines, CATEGORY, strict=False):
        x = np.arange(len(line.values), dtype=np.float64) if line.x is None else line.x
        label = shortened(line.label, 34)
        if is_smoothed(line.values):
            axes.plot(x, line.values, color=color, linewidth=0.6, alpha=0.35)
        axes.plot(x, smoothed(line.values), color=color, linewidth=1.7, label=label)
        if line.null is not None:
            axes.plot(x, smoothed(line.null), **{**NULL, "color": color}, label=f"{label}, by chance")
    _null(axes, panel)
    frame(axes, title=shortened(panel.title, 46), xlabel=panel.xlabel)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)


def _limits(used: Sequence[Axes], panels: Sequence[Panel], log: bool) -> None:
    """From zero to the most that there can be; logarithmic axes are shared, and begin at one where they count something."""
    most = max((panel.limit for panel in panels if panel.limit is not None), default=None)
    for axes, panel in zip(used, panels, strict=True):
        if log:
            axes.set_yscale("log")
            axes.minorticks_off()
        if log and most is not None:
            axes.set_ylim(0.9, 1.15 * max(most, 1.0))
        elif panel.limit is not None:
            axes.set_ylim(0, 1.04 * panel.limit)
        if log:
            _plain_ticks(axes)


def _plain_ticks(axes: Axes) -> None:
    """Numbers at 1, 2 and 5 where powers of ten would be too few."""
    low, high = axes.get_ylim()
    if high < 300 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=16))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legends(figure: Figure, used: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """One above all panels where their lines are the same, else one in each."""
    style: dict[str, Any] = {"fontsize": 8.5, "labelcolor": INK}
    if len({tuple(line.label for line in panel.lines) for panel in panels}) == 1:
        handles, labels = used[0].get_legend_handles_labels()
        columns = 4 if sum(map(len, labels)) > 90 else 6
        figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=columns, **style)
        return
    for axes in used:
        axes.legend(facecolor=PAPER, edgecolor="none", framealpha=0.85, **style)


def _null(axes: Axes, panel: Panel) -> None:
    if panel.band is not None:
        axes.axhspan(*panel.band, color=MUTED, alpha=0.2, linewidth=0)
    for n, null in enumerate(panel.nulls):
        axes.axhline(null, label="_" if n else "chance", **NULL)


def smoothed(values: Vector) -> Vector:
    """A running median over a part of the values; short ones as they are."""
    if not is_smoothed(values):
        return values
    middle = pd.Series(values).rolling(_window(values), center=True, min_periods=1).median()
    return np.where(np.isfinite(values), middle.to_numpy(), np.nan)


def is_smoothed(values: Vector) -> bool:
    """Whether values are so many that a running median is drawn through them."""
    return _window(values) >= 3


def _window(values: Vector) -> int:
    return 2 * (len(values) // SMOOTH // 2) + 1


def trajectories(paths: Sequence[Path]) -> Figure:
    """Left: shares of components beside those of random walks. Right: the first components over steps, with the walk's cosines."""
    figure = Figure((WIDTH, 0.3 + 3.1 * len(paths)), layout="constrained")
    for (left, right), path in zip(figure.subplots(len(paths), 2, squeeze=False), paths, strict=True):
        _shares(left, path)
        _components(right, path)
    return figure


def _shares(axes: Axes, path: Path) -> None:
    x = np.arange(1, len(path.share) + 1)
    axes.fill_between(x, path.low, path.high, color=MUTED, alpha=0.25, linewidth=0, label="95 % of walks")
    axes.plot(x, path.null, label="random walk", **NULL)
    axes.plot(
        x,
        np.where(path.share > 0, path.share, np.nan),
        color=CATEGORY[0],
        marker="o",
        markersize=3.5,
        linewidth=1.4,
        label="this training",
    )
    axes.set_yscale("log")
    _plain_ticks(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    frame(axes, title=shortened(path.site, 46), xlabel="component")
    axes.set_ylabel("share of variance", color=MUTED)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _components(axes: Axes, path: Path) -> None:
    steps = len(path.projection)
    order = np.arange(steps)
    x = order if path.x is None else path.x
    for k in range(min(2, path.projection.shape[1])):
        values = path.projection[:, k] / (np.abs(path.projection[:, k]).max() or 1.0)
        cosine = np.cos(np.pi * (k + 1) * (order + 0.5) / steps)
        cosine = cosine if cosine @ values >= 0 else -cosine
        axes.plot(x, cosine, **{**NULL, "color": CATEGORY[k], "linewidth": 1.0})
        axes.plot(x, values, color=CATEGORY[k], linewidth=1.7, label=f"component {k + 1}")
    frame(axes, title="Over the steps; dashed: a random walk's", xlabel=path.xlabel)
    axes.set_ylabel("projection, largest = 1", color=MUTED)
    axes.set_ylim(-1.15, 1.15)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def eigenvalues(lines: Sequence[Line]) -> Figure:
    """Leading eigenvalues by their order, with bars of how far each may be off; logarithmic where they differ much."""
    figure = Figure((WIDTH, 3.5), layout="constrained")
    axes = figure.subplots()
    for n, (line, color) in enumerate(zip(lines, CATEGORY, strict=False)):
        x = np.arange(1, len(line.values) + 1) + 0.12 * (n - (len(lines) - 1) / 2)
        axes.errorbar(
            x, line.values, yerr=line.error, color=color, marker="o", markersize=4, elinewidth=0.8, capsize=2,
            linewidth=0.8 if line.values.min() > 0 else 0, label=shortened(line.label, 34),
        )  # fmt: skip
    _scale(axes, np.concatenate([line.values for line in lines]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    frame(axes, title="Leading eigenvalues, by magnitude", xlabel="component")
    axes.set_ylabel("eigenvalue", color=MUTED)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _scale(axes: Axes, values: Vector) -> None:
    """Logarithmic over wide ranges, on both sides of zero where both signs are there."""
    sizes = np.abs(values[values != 0])
    wide = sizes.size > 0 and float(sizes.max()) > 50 * float(sizes.min())
    if values.min() < 0:
        axes.axhline(0, **NULL)
    if wide and values.min() > 0:
        axes.set_yscale("log")
    elif wide:
        axes.set_yscale("symlog", linthresh=max(float(sizes.min()), 1e-3 * float(sizes.max())))


def densities(panels: Sequence[tuple[str, Vector, Vector, Vector]]) -> Figure:
    """Spectral densities with twice their standard error: title, grid, density, error."""
    figure = Figure((WIDTH, 0.4 + 2.9 * len(panels)), layout="constrained")
    for axes, (title, grid, density, error) in zip(
        figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True
    ):
        floor = max(float(density.max()), 1e-300) * 1e-6
        low, high = np.maximum(density - 2 * error, floor), density + 2 * error
        axes.fill_between(grid, low, high, where=high > floor, color=CATEGORY[5], alpha=0.35, linewidth=0)
        axes.plot(grid, np.where(density > floor, density, np.nan), color=CATEGORY[0], linewidth=1.5)
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        frame(axes, title=shortened(title, 46), xlabel="eigenvalue")
        axes.set_ylabel("density", color=MUTED)
        axes.grid(True, color=GRID, linewidth=0.7)
    return figure


class Reached(NamedTuple):
    """What subspaces of several dimensions reach."""

    title: str
    measure: str
    dimension: Vector
    performance: Vector
    error: Vector
    start: float
    full: float
    target: float


def dimensions(panels: Sequence[Reached]) -> Figure:
    """Performance by dimension, with full training, the target and the untrained network as lines."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure((WIDTH, 0.4 + 3.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.axhline(panel.full, color=CATEGORY[2], linewidth=1.4, label="full training")
        axes.axhline(
            panel.target, color=CATEGORY[1], linewidth=1.4, linestyle=(0, (4, 2)), label="to be reached"
        )
        axes.axhline(panel.start, label="untrained", **NULL)
        axes.errorbar(
            panel.dimension, panel.performance, yerr=2 * panel.error, color=CATEGORY[0], marker="o",
            markersize=4, linewidth=1.4, capsize=2, label="random subspaces",
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(panel.dimension, [f"{int(d):,}" for d in panel.dimension])
        frame(axes, title=shortened(panel.title, 46), xlabel="dimension of the subspace")
        axes.set_ylabel(panel.measure, color=MUTED)
        axes.grid(True, axis="y", color=GRID, linewidth=0.7)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    return figure

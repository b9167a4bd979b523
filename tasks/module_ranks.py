"""The figure of how many directions the updates of each module take, beside what chance gives. Nothing is read or written here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from tasks.figures import WIDTH, frame, shortened
from tasks.palette import CATEGORY, GRID, INK, MUTED


class ModuleRank(NamedTuple):
    """Effective rank of a module's updates."""

    site: str
    rank: float
    null: float | None
    """By chance; None where the result is of a version without it."""


def ranks_by_module(modules: Sequence[ModuleRank]) -> Figure:
    """A point for each module, the first on top, and a bar at what chance gives."""
    figure = Figure((WIDTH, 1.0 + 0.22 * len(modules)), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(modules))
    chance = [np.nan if module.null is None else module.null for module in modules]
    axes.plot(
        chance,
        y,
        linestyle="none",
        color=MUTED,
        marker="|",
        markersize=9,
        markeredgewidth=1.6,
        label="chance",
    )
    axes.plot(
        [m.rank for m in modules], y, linestyle="none", color=CATEGORY[0], marker="o", markersize=5, label="updates"
    )  # fmt: skip
    axes.set_xscale("log")
    frame(axes, xlabel="effective rank")
    axes.set_yticks(y, [shortened(module.site, 52) for module in modules])
    axes.set_ylim(len(modules) - 0.4, -0.6)
    _ticks(axes)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _ticks(axes: Axes) -> None:
    """From one, with plain numbers, and a line for each module."""
    axes.set_xlim(0.9, None)
    if axes.get_xlim()[1] < 300:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=16))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(True, color=GRID, linewidth=0.7)

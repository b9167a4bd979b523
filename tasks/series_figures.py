"""Result over several sites to matplotlib figure: a map between members, lines over steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from tasks.figures import HEAT, WIDTH, Vector, color_bar, frame, short, shortened
from tasks.palette import CATEGORY, GRID, INK, MUTED, PAPER
from tasks.profiles import MARKERS, STROKES

MOST_NUMBERS = 14
"""Members up to which numbers are written into the cells."""
MOST_TICKS = 32
MOST_LINES = 6


class Stretch(NamedTuple):
    """Steps of one series."""

    name: str
    ticks: tuple[str, ...]
    values: Vector
    null: Vector | None = None
    noise: Vector | None = None


def between(
    values: Vector, names: Sequence[str], title: str, label: str, ends: tuple[float, float] | None = None
) -> Figure:
    """A number between each two members; not finite where there is none.

    Args:
        values: [member, member].
        names: of the members.
        title: of the map.
        label: of its colours.
        ends: what the colours run over; None: the values away from the diagonal.
    """
    n = len(names)
    shown = np.ma.masked_invalid(values)
    away = values[~np.eye(n, dtype=bool)]
    low, high = ends or (float(np.nanmin(away)), float(np.nanmax(away)))
    side = min(max(2.6 + 0.36 * n, 4.0), WIDTH - 1.2)
    figure = Figure((min(side + 1.2, WIDTH), side), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        shown, cmap=HEAT, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.2 if n <= MOST_TICKS else 0
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    frame(axes, title=title)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    every = max(-(-n // MOST_TICKS), 1)
    at, ticks = np.arange(0, n, every) + 0.5, [shortened(name, 26) for name in names[::every]]
    axes.set_yticks(at, ticks)
    turned: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, ticks)) > 3 else {}
    )
    axes.set_xticks(at, ticks, **turned)
    if n <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "#ffffff" if value - low > 0.5 * (high - low) else "#102030"
                axes.text(
                    column + 0.5, row + 0.5, short(value), ha="center", va="center", fontsize=7.5, color=color
                )
    color_bar(figure, axes, mesh, label, pad=0.02, aspect=24, shrink=0.8)
    return figure


def steps(stretches: Sequence[Stretch], title: str) -> Figure:
    """Lines over steps, one for each series; dashed what random subspaces, dotted what noise would give."""
    figure = Figure((WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    longest = max(stretches, key=lambda one: len(one.ticks))
    for n, one in enumerate(stretches[:MOST_LINES]):
        x, color = np.arange(len(one.ticks)), CATEGORY[n]
        for values, stroke in ((one.null, (0, (5, 3))), (one.noise, (0, (1, 1.6)))):
            if values is not None and np.isfinite(values).any():
                axes.plot(
                    x, values, color=MUTED if stroke[1] == (5, 3) else color, linestyle=stroke, linewidth=1.2
                )
        axes.plot(
            x, one.values, color=color, marker=MARKERS[n], linestyle=STROKES[n % len(STROKES)],
            markersize=4.2, markerfacecolor=PAPER if n else color, linewidth=1.8, label=shortened(one.name),
        )  # fmt: skip
    frame(axes, title=title)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)
    axes.set_ylim(bottom=0)
    every = max(-(-len(longest.ticks) // 16), 1)
    names = [shortened(name, 34) for name in longest.ticks[::every]]
    turned: dict[str, Any] = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, names)) > 100 else {}
    )
    axes.set_xticks(range(0, len(longest.ticks), every), names, **turned)
    if len(stretches) > 1:
        figure.legend(
            loc="outside upper left", ncols=min(len(stretches), 4), frameon=False, labelcolor=INK, fontsize=9
        )
    return figure

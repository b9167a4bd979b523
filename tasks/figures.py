"""Result to matplotlib figure. Nothing is read or written here; colours come from the palette.

matplotlib's object interface is used, never pyplot: no global state, no display, safe in threads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from tasks.depth import KINDS, Place
from tasks.palette import CATEGORY, GREY, GRID, INK, MUTED, PAPER, depth_color

Vector = npt.NDArray[np.float64]

WIDTH = 9.2
"""Inches."""
MOST_PANELS = 4
LONG_LABELS = 36
"""Letters of all names of depths below a panel; of more the names are slanted."""
MOST_POINTS = 160
"""Points drawn of one curve; more are thinned evenly on the logarithmic axis."""
HEAT = LinearSegmentedColormap.from_list("heat", ["#f4f7fa", "#b7d3e6", "#5a9fc6", "#1f6a9c", "#0b3a63"])


class Point(NamedTuple):
    """A number at a site."""

    place: Place
    value: float
    low: float | None = None
    high: float | None = None
    """Ends of the interval, where there is one."""
    null: float | None = None
    """What chance, or uniform directions, would give."""
    capture: str = ""
    """Whose rows; a line of its own."""


class Curve(NamedTuple):
    """A spectrum at a site."""

    place: Place
    values: Vector
    """[component], falling; not always all."""
    total: float | None = None
    """Total variance; None: the sum of the values."""


def spectra(curves: Sequence[Curve], captures: int = 1) -> Figure:
    """Share of variance per component on logarithmic axes: one panel per kind of site (and capture), coloured by depth."""
    kinds = ranked_kinds([curve.place for curve in curves])[: most_panels(captures)]
    columns = captures if 1 < captures < 4 else 2 if len(kinds) == MOST_PANELS else min(len(kinds), 3)
    lines = -(-len(kinds) // columns)
    figure = Figure((WIDTH, 0.5 + 3.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    orders = sorted({curve.place.order for curve in curves})
    for axes, kind in zip(grid.flat, kinds, strict=False):
        _spectra_panel(axes, kind, [c for c in curves if c.place.kind == kind], orders)
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("share of variance", color=MUTED)
    return figure


def most_panels(captures: int) -> int:
    """Panels of spectra: three kinds for each of several captures."""
    return MOST_PANELS if captures == 1 else min(3 * captures, 9)


def _spectra_panel(axes: Axes, kind: str, curves: list[Curve], orders: list[tuple[int, ...]]) -> None:
    curves = sorted(curves, key=lambda curve: curve.place.order)
    for curve in curves:
        share = curve.values / (curve.total or curve.values.sum())
        keep = thinned(int(np.count_nonzero(share > 1e-12)))
        color = depth_color(orders.index(curve.place.order), len(orders))
        axes.plot(keep + 1, share[keep], color=color, linewidth=1.4, solid_capstyle="round")
    axes.set_xscale("log")
    axes.set_yscale("log")
    frame(axes, title=kind, xlabel="component")
    axes.grid(True, color=GRID, linewidth=0.7)
    if len(curves) > 1:
        _depth_key(axes, curves, orders)


def _depth_key(axes: Axes, curves: list[Curve], orders: list[tuple[int, ...]]) -> None:
    """A strip of the colours in use, lower left, with the first and last depth named."""
    inset = axes.inset_axes((0.06, 0.13, 0.42, 0.035))
    colors = [depth_color(orders.index(curve.place.order), len(orders)) for curve in curves]
    for index, color in enumerate(colors):
        inset.axvspan(index, index + 1, color=color, linewidth=0)
    inset.set_xlim(0, len(colors))
    inset.set_axis_off()
    for x, curve, align in ((0, curves[0], "left"), (len(colors), curves[-1], "right")):
        inset.text(x, -0.6, _depth_name(curve.place.label), ha=align, va="top", fontsize=7.5, color=MUTED)


def _depth_name(label: str) -> str:
    return f"layer {label}" if label.isdigit() else {"emb": "embedding", "end": "end"}.get(label, label)


def thinned(n: int) -> npt.NDArray[np.int64]:
    """Indices 0..n-1, at most MOST_POINTS of them, evenly spaced on a logarithmic axis."""
    if n <= MOST_POINTS:
        return np.arange(n)
    return np.unique(np.round(np.geomspace(1, n, MOST_POINTS)).astype(np.int64)) - 1


def scree(
    values: Vector, low: Vector | None, high: Vector | None, total: float | None = None, first: int = 60
) -> Figure:
    """The leading shares of variance with their confidence band, and how they add up.

    Args:
        values: [component] eigenvalues, falling.
        low, high: [component] ends of the interval of each eigenvalue.
        total: the total variance; None: the sum of the values.
        first: components shown on the left.
    """
    total = total or float(values.sum())
    share = values / total
    shown = max(min(first, int(np.count_nonzero(share > 1e-9))), 1)
    figure = Figure((WIDTH, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    index = np.arange(1, shown + 1)
    if low is not None and high is not None:
        band = np.maximum(low[:shown] / total, share[:shown].min() * 1e-2), high[:shown] / total
        left.fill_between(index, *band, color=CATEGORY[5], alpha=0.35, linewidth=0)
    left.plot(index, share[:shown], color=CATEGORY[0], marker="o", markersize=2.8, linewidth=1.1)
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: percent(y)))
    frame(left, title="Variance of each component", xlabel="component")
    left.grid(True, axis="y", color=GRID, linewidth=0.7)
    left.set_xticks(
        [tick for tick in MaxNLocator(7, integer=True).tick_values(1, shown) if 1 <= tick <= shown]
    )
    _cumulative(right, share)
    return figure


def _cumulative(axes: Axes, share: Vector) -> None:
    """Cumulative share over components, with the counts for 50, 90 and 99 % written at the curve."""
    total = np.cumsum(share)
    axes.plot(np.arange(1, len(total) + 1), total, color=CATEGORY[0], linewidth=1.6)
    for level in (level for level in (0.5, 0.9, 0.99) if level <= total[-1] + 1e-9):
        count = components_for(share, level)
        axes.plot([count], [level], marker="o", color=CATEGORY[1], markersize=5)
        axes.annotate(
            f"{level:.0%}: {count}", (count, level), xytext=(7, -9), textcoords="offset points",
            color=INK, fontsize=8.5, path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )  # fmt: skip
    if len(total) > 30:
        axes.set_xscale("log")
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
    frame(axes, title="Variance of the first k components", xlabel="k")
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)


def components_for(share: Vector, level: float) -> int:
    """The fewest leading components that hold a share of the variance."""
    reached = np.cumsum(share) >= level - 1e-12
    return int(np.argmax(reached)) + 1 if reached.any() else len(share)


def depth_ticks(
    axes: Axes,
    orders: list[tuple[int, ...]],
    labels: dict[tuple[int, ...], str],
    most: int,
    shift: float = 0.0,
) -> None:
    """Names of depths below an axis, at most so many; long ones slanted."""
    every = max(-(-len(orders) // most), 1)
    shown = range(0, len(orders), every)
    names = [shortened(labels[orders[i]], 18) for i in shown]
    slant = sum(len(name) + 2 for name in names) > LONG_LABELS
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slant else {}
    axes.set_xticks([i + shift for i in shown], names, **turned)


def heat_maps(panels: dict[str, Sequence[Point]]) -> Figure:
    """Kind of site by depth, one map per measure; numbers are written into the cells where they fit."""
    every = [point.place for points in panels.values() for point in points]
    kinds = ranked_kinds(every)[:12]
    orders = sorted({place.order for place in every if place.kind in kinds})
    labels = {place.order: place.label or "-" for place in every}
    figure = Figure((WIDTH, 0.35 + len(panels) * (0.75 + 0.36 * len(kinds))), layout="constrained")
    for axes, (name, points) in zip(
        figure.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True
    ):
        _heat_map(figure, axes, name, points, kinds, orders)
        depth_ticks(axes, orders, labels, most=30, shift=0.5)
    return figure


def _heat_map(
    figure: Figure,
    axes: Axes,
    name: str,
    points: Sequence[Point],
    kinds: list[str],
    orders: list[tuple[int, ...]],
) -> None:
    values = np.full((len(kinds), len(orders)), np.nan)
    for point in points:
        if point.place.kind in kinds:
            values[kinds.index(point.place.kind), orders.index(point.place.order)] = point.value
    mesh = axes.pcolormesh(values, cmap=HEAT, edgecolors=PAPER, linewidth=1.5 if len(orders) <= 30 else 0.4)
    mesh.set_array(np.ma.masked_invalid(values))
    axes.set_xlim(-0.02, len(orders) + 0.02)
    axes.invert_yaxis()
    frame(axes, title=name)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, [shortened(kind) for kind in kinds])
    if len(orders) <= 16:
        _cell_numbers(axes, values)
    color_bar(figure, axes, mesh, pad=0.01, aspect=12)


def color_bar(
    figure: Figure,
    axes: Axes,
    mesh: QuadMesh,
    label: str = "",
    pad: float = 0.02,
    aspect: float = 24,
    shrink: float = 1.0,
) -> None:
    """What the colours of a map mean, at its right."""
    bar = figure.colorbar(mesh, ax=axes, pad=pad, aspect=aspect, shrink=shrink)
    bar.set_label(label, color=MUTED, fontsize=8.5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=0)


def _cell_numbers(axes: Axes, values: Vector) -> None:
    low, high = np.nanmin(values), np.nanmax(values)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value - low > 0.5 * (high - low)
            color = "#ffffff" if dark else "#102030"
            axes.text(
                column + 0.5, row + 0.5, short(value), ha="center", va="center", fontsize=8, color=color
            )


def frame(axes: Axes, title: str = "", xlabel: str = "") -> None:
    """Quiet axes: no box, muted ticks, title at the left."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(xlabel, color=MUTED)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)
    axes.tick_params(which="both", colors=MUTED, labelsize=8.5, length=3)
    axes.minorticks_off()


def ranked_kinds(places: Sequence[Place]) -> list[str]:
    """The named kinds first, then the others by number of sites."""
    counts = {
        kind: sum(place.kind == kind for place in places) for kind in dict.fromkeys(p.kind for p in places)
    }
    return sorted(
        counts,
        key=lambda kind: (
            KINDS.index(named) if (named := kind.partition(", ")[0]) in KINDS else len(KINDS),
            -counts[kind],
            kind,
        ),
    )


def percent(value: float) -> str:
    """A share as a percentage with two meaningful digits."""
    if value < 0.00995:
        return f"{100 * value:.2g} %"
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def short(value: float) -> str:
    """A number in at most five characters where possible."""
    if value == 0 or 0.01 <= abs(value) < 1:
        return f"{value:.2f}"
    if 1 <= abs(value) < 100:
        return f"{value:.1f}"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e5 else f"{value:.1e}"


def cut(text: str, most: int = 30) -> str:
    """A name cut in its middle."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2 - 1) :]}"


def shortened(text: str, most: int = 30) -> str:
    """A name for a figure, cut in its middle, as it is: dollar signs begin no formula; what cannot be seen, such as a line's end, is a
    space."""
    seen = "".join(letter if letter.isprintable() else " " for letter in text)
    return cut(seen, most).replace("$", r"\$")

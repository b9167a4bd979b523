"""Measures along the depth as small multiples: lines with bands, and dashed what chance or uniform directions would give."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from tasks.depth import IN_ORDER, Place
from tasks.figures import LONG_LABELS, MOST_PANELS, WIDTH, Point, depth_ticks, frame, ranked_kinds, short
from tasks.palette import CATEGORY, GRID, INK, MUTED, PAPER

COLUMNS = 3
DECADES = 30.0
"""Largest over smallest value from which a measure that may be has a logarithmic axis."""
MARKERS = ("o", "s", "^", "D", "v", "P")
STROKES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (1.2, 1.2)),
    (0, (3.5, 1.2, 1, 1.2)),
    (0, (6, 1.5)),
)
FAR = 4.0
"""Null values so many times as large as the largest value are told, not drawn."""
Order = tuple[int, ...]


class Panel(NamedTuple):
    """A measure over depth."""

    title: str
    points: Sequence[Point]
    null: str = ""
    """What is dashed."""
    share: bool = False
    log: bool = False
    from_zero: bool = True


class Line(NamedTuple):
    """The look of a kind of site of a capture."""

    kind: str
    capture: str
    color: str
    marker: str
    stroke: str | tuple[int, tuple[float, ...]]
    hollow: bool


def lines_of(panels: Sequence[Panel]) -> list[Line]:
    """Kinds with more than one depth, of each capture: colours are kinds, or captures where there is one kind."""
    every = [point for panel in panels for point in panel.points]
    kinds = deep_kinds([point.place for point in every])[:MOST_PANELS]
    captures = list(dict.fromkeys(p.capture for p in every if p.place.kind in kinds))[: len(MARKERS)]
    if len(kinds) == 1:
        looks = zip(CATEGORY, MARKERS, STROKES * 2, strict=False)
        return [
            Line(kinds[0], capture, *look, hollow=n > 0)
            for n, (capture, look) in enumerate(zip(captures, looks, strict=False))
        ]
    return [
        Line(kind, capture, CATEGORY[k], MARKERS[n], STROKES[n % len(STROKES)], hollow=n > 0)
        for k, kind in enumerate(kinds)
        for n, capture in enumerate(captures)
    ]


def deep_kinds(places: Sequence[Place]) -> list[str]:
    """Kinds with more than one depth, as they are told."""
    return [kind for kind in ranked_kinds(places) if len({p.order for p in places if p.kind == kind}) > 1]


def profiles(panels: Sequence[Panel]) -> Figure:
    """One panel for each measure, one line for each kind of site and capture."""
    lines = lines_of(panels)
    kinds = {line.kind for line in lines}
    every = [p.place for panel in panels for p in panel.points if p.place.kind in kinds]
    orders, labels = sorted({place.order for place in every}), {place.order: place.label for place in every}
    columns = 2 if len(panels) in (2, 4) else min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    long = sum(len(label) + 2 for label in labels.values()) > LONG_LABELS
    figure = Figure((WIDTH, 0.5 + (3.1 if long or rows == 1 else 2.7) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for line in lines:
            _draw_line(axes, panel, line, orders)
        _finish(axes, panel, orders, labels)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _legend(figure, lines)
    return figure


def _draw_line(axes: Axes, panel: Panel, line: Line, orders: list[Order]) -> None:
    mine = [p for p in panel.points if (p.place.kind, p.capture) == (line.kind, line.capture)]
    if not mine:
        return
    mine.sort(key=lambda point: point.place.order)
    x = [orders.index(point.place.order) for point in mine]
    low, high, null = (
        np.array([np.nan if value is None else value for value in values])
        for values in ([p.low for p in mine], [p.high for p in mine], [p.null for p in mine])
    )
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=line.color, alpha=0.18, linewidth=0, label="_band")
        axes.vlines(x, low, high, color=line.color, alpha=0.5, linewidth=1.0, label="_interval")
    if np.isfinite(null).any() and not far_off(panel):
        axes.plot(x, null, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.1, label="_null", zorder=1.5)
    axes.plot(
        x, [point.value for point in mine], color=line.color, linestyle=line.stroke, marker=line.marker,
        markersize=3.8, markerfacecolor=PAPER if line.hollow else line.color, linewidth=1.7,
        label=line.kind if not line.capture else f"{line.kind} {line.capture}", clip_on=False, zorder=3,
    )  # fmt: skip


def far_off(panel: Panel) -> bool:
    """Whether the null values lie so far above the measure that nothing could be seen of it beside them."""
    nulls = [point.null for point in panel.points if point.null is not None]
    values = [point.value if point.high is None else point.high for point in panel.points]
    return bool(nulls) and max(nulls) > FAR * max(values) > 0


def _null_words(panel: Panel) -> str:
    nulls = [point.null for point in panel.points if point.null is not None]
    if not nulls or not panel.null:
        return ""
    if not far_off(panel):
        return f"dashed: {panel.null}"
    low, high = short(min(nulls)), short(max(nulls))
    return f"{panel.null}, far above: {low if low == high else f'{low} to {high}'}"


def _finish(axes: Axes, panel: Panel, orders: list[Order], labels: dict[Order, str]) -> None:
    """Axes and ticks."""
    named = {point.place.kind for point in panel.points} == {IN_ORDER}
    along = "" if named else "depth"
    parts = (along, _null_words(panel))
    frame(axes, title=panel.title, xlabel=" · ".join(part for part in parts if part))
    axes.xaxis.label.set_fontsize(9)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)
    values = [point.value for point in panel.points]
    if panel.log and min(values) > 0 and max(values) > DECADES * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.minorticks_off()
    elif panel.from_zero:
        bottom, top = axes.get_ylim()
        lowest = min([*values, *(p.low for p in panel.points if p.low is not None)])
        axes.set_ylim(0.0 if lowest >= 0 else min(0.0, bottom), max(top, 1.04 * max(values)))
    if panel.share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
    axes.set_xlim(-0.35, len(orders) - 0.65)
    depth_ticks(axes, orders, labels, most=9)


def _legend(figure: Figure, lines: Sequence[Line]) -> None:
    """Kinds by colour, captures by marker and stroke; none where there is a single line."""
    kinds, captures = (
        dict.fromkeys(line.kind for line in lines),
        dict.fromkeys(line.capture for line in lines),
    )
    look: dict[str, Any] = {"linewidth": 1.7, "markersize": 4.2}
    handles = []
    if len(kinds) > 1 or (len(captures) == 1 and kinds and next(iter(kinds)) != IN_ORDER):
        handles += [Line2D([], [], color=next(n.color for n in lines if n.kind == kind), marker="" if len(captures) > 1 else "o",
                           label=kind, **look) for kind in kinds]  # fmt: skip
    if len(captures) > 1:
        first = {line.capture: line for line in reversed(lines)}
        handles += [
            Line2D([], [], color=first[name].color if len(kinds) == 1 else INK, marker=first[name].marker,
                   markerfacecolor=PAPER if first[name].hollow else None, linestyle=first[name].stroke, label=name, **look)
            for name in captures
            if name
        ]  # fmt: skip
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=min(len(handles), 6),
            frameon=False,
            labelcolor=INK,
            fontsize=9,
        )


def range_of(panel: Panel) -> str:
    """A panel in a sentence, for readers who cannot see it."""
    values = np.array([point.value for point in panel.points])
    low, high = short(float(values.min())), short(float(values.max()))
    return f"{panel.title} runs from {low} to {high} over {len(values)} sites."

"""Figures of compressed networks with their words: what is left at which size, the ranks of layers, and the errors of what they give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.figures import WIDTH, frame, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.palette import CATEGORY, INK, MUTED

FRONTIER = "frontier-"
"""What names of these figures begin with."""
METHOD = "compression.model"
MARKERS = "os^D"
"""One for each round of colours."""
WORDS = {"rank_correlation": "rank correlation of cosines with those before", "loss": "loss"}
Points = Sequence[Mapping[str, Any]]


def compression_illustrations(artifacts: Sequence[StageArtifact]) -> Iterator[Illustration]:
    """One for each stage that tried compressed networks."""
    for made in artifacts:
        if made.artifact.stage.method == METHOD:
            yield _illustration(made)


def _illustration(made: StageArtifact) -> Illustration:
    result = made.artifact.result
    points, by = result["points"], result["judged_by"]
    drawn = _by_layer(result)
    figure = Figure((WIDTH, 4.2 + 2.0 * len(drawn)), layout="constrained")
    ratios = [2.0, *[1.0] * len(drawn)]
    axes = figure.subplots(1 + len(drawn), 1, squeeze=False, height_ratios=ratios)[:, 0]
    _frontier(axes[0], points, by, result["best"])
    figure.legend(loc="outside right upper", fontsize=7.5, frameon=False)
    for below, draw in zip(axes[1:], drawn, strict=True):
        draw(below, result)
    better = "higher" if by != "loss" else "lower"
    caption = (
        f"{WORDS[by].capitalize()} over the bytes of the layers, with intervals; {better} is better. "
        + (
            f"The ring is the chosen one{_below(result) if drawn else ''}."
            if result["best"]
            else "None has the wanted size."
        )
    )
    told = "; ".join(
        f"{point['name']}: {point['stored_bytes'] / 1e6:.2f} MB, {_told(point[by])}" for point in points
    )
    told += _errors_told(result)
    return Illustration(f"{FRONTIER}{made.stage}", f"Size and quality ({made.stage})", figure, caption, told)


def _below(result: Mapping[str, Any]) -> str:
    """What is drawn of its layers, and which these are."""
    first, last = (result["layers"][n]["module"] for n in (0, -1))
    return f", with what it does layer by layer below: 0 is {first}, {len(result['layers']) - 1} is {last}"


def _by_layer(result: Mapping[str, Any]) -> list[Callable[[Axes, Mapping[str, Any]], None]]:
    """What can be drawn of the chosen candidate's layers."""
    ranked = any(layer["rank"] for layer in result["layers"])
    return ([_ranks] if ranked else []) + ([_errors] if _errors_of(result) else [])


def _errors_of(result: Mapping[str, Any]) -> list[float]:
    """Of layers that have one and where it is not zero."""
    return [layer["output_error"] for layer in result["layers"] if layer["output_error"]]


def _errors_told(result: Mapping[str, Any]) -> str:
    found = _errors_of(result)
    if not found:
        return ""
    return (
        f". Errors of what layers give in the whole network run from {short(min(found))} to {short(max(found))} of its "
        "mean square"
    )


def _told(number: Mapping[str, float | None] | None) -> str:
    return "no number" if number is None or number["value"] is None else short(number["value"])


def _frontier(axes: Axes, points: Points, by: str, best: str) -> None:
    """A line for each way to deal out sizes."""
    frame(axes, WORDS[by], "megabytes of the layers")
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in points[1:]:
        lines.setdefault(point["way"], []).append(point)
    before = _value(points[0], by)
    if before is not None:
        axes.axhline(before, color=MUTED, linewidth=1, linestyle=":")
    for number, (name, some) in enumerate(lines.items()):
        color, marker = CATEGORY[number % len(CATEGORY)], MARKERS[number // len(CATEGORY) % len(MARKERS)]
        there = [point for point in some if _value(point, by) is not None]
        x = [point["stored_bytes"] / 1e6 for point in there]
        y = [value for point in some if (value := _value(point, by)) is not None]
        axes.plot(x, y, f"{marker}-", color=color, markersize=4, linewidth=1.2, label=name)
        for point, at, value in zip(there, x, y, strict=True):
            low, high = point[by]["low"], point[by]["high"]
            if low is not None and high is not None:
                axes.plot([at, at], [low, high], color=color, linewidth=1)
            if point["name"] == best:
                axes.plot([at], [value], "o", markersize=11, markerfacecolor="none", color=INK)


def _value(point: Mapping[str, Any], by: str) -> float | None:
    value: float | None = point[by]["value"] if point[by] else None
    return value


def _ranks(axes: Axes, result: Mapping[str, Any]) -> None:
    """Of the chosen candidate; layers that stay as they are have none."""
    frame(axes, "ranks", "layer")
    ranks = [layer["rank"] or 0 for layer in result["layers"]]
    axes.bar(np.arange(len(ranks)), ranks, color=CATEGORY[0], width=0.8)
    whole = [number for number, rank in enumerate(ranks) if not rank]
    axes.plot(whole, [0] * len(whole), "x", color=MUTED, markersize=5, label="stays as it is")
    if whole:
        axes.legend(fontsize=7.5, frameon=False)


def _errors(axes: Axes, result: Mapping[str, Any]) -> None:
    """Of outputs in the chosen network, its layers' inputs being those that it gives them."""
    frame(axes, "error of outputs", "layer")
    there = [(n, layer["output_error"]) for n, layer in enumerate(result["layers"]) if layer["output_error"]]
    axes.plot(*zip(*there, strict=True), "o-", color=CATEGORY[1], markersize=3.5, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlim(-0.8, len(result["layers"]) - 0.2)

"""Figures of strange rows: scores beside those of normal rows with the threshold, and the strangest samples."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.figures import WIDTH, Vector, frame, short
from tasks.illustrations import Illustration
from tasks.palette import CATEGORY, GREY, GRID, INK, MUTED
from tasks.strange_illustrations import STRANGE, STRANGER, StrangeSamples, strange_illustrations
from tasks.tables import short_site

NORMAL = CATEGORY[0]


class ScoreHistogram(NamedTuple):
    """Scores of a stage that calibrated them, at a site."""

    stage: str
    site: str
    detector: str
    edges: Vector
    """[bin + 1], rising."""
    scores: npt.NDArray[np.int64]
    """[bin]: rows that are judged."""
    calibration: npt.NDArray[np.int64]
    """[bin]: normal rows."""
    log: bool
    """Whether bins are as wide as each other on a logarithmic axis."""
    thresholds: tuple[float, ...]
    """Of classes, or the one; without infinite ones."""
    alpha: float
    rates: tuple[float, float] | None
    """Interval of the share of normal rows above the one threshold."""
    n_rows: int
    """That are judged."""
    n_read: int
    """Of which these are; fewer in a seeded choice."""


def anomaly_illustrations(
    histograms: Sequence[ScoreHistogram], strange: Sequence[StrangeSamples]
) -> Iterator[Illustration]:
    """One figure of scores for each stage that calibrated them, and those of the strangest samples."""
    for stage in dict.fromkeys(made.stage for made in histograms):
        yield _histograms(stage, [made for made in histograms if made.stage == stage])
    yield from strange_illustrations(strange)


def _histograms(stage: str, group: Sequence[ScoreHistogram]) -> Illustration:
    columns = min(2, len(group))
    lines = -(-len(group) // columns)
    figure = Figure((WIDTH, 0.4 + 2.9 * lines), layout="constrained")
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, made in zip(places, group, strict=False):
        _histogram(axes, made)
    for axes in places[::columns]:
        axes.set_ylabel("share of rows", color=MUTED)
    for axes in places[len(group) :]:
        axes.set_axis_off()
    handles = {
        label: handle
        for axes in places
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    return Illustration(
        f"{STRANGE}scores-{stage}", f"Scores of judged and of normal rows ({stage})", figure, " ".join(_caption(group)),
        f"Histograms. {' '.join(_told(made) for made in group)}",
    )  # fmt: skip


def _caption(group: Sequence[ScoreHistogram]) -> Iterator[str]:
    first = group[0]
    yield f"Scores of {first.detector} as shares of rows, on a logarithmic axis; larger is stranger."
    yield f"Rows right of the line are flagged: {100 * first.alpha:g} % of normal rows in the long run, with the interval below a panel."
    if any(len(made.thresholds) > 1 for made in group):
        yield "The grey range holds the thresholds of classes."
    some = [
        f"{m.n_read:,} of {m.n_rows:,} rows at {short_site(m.site)}" for m in group if m.n_read < m.n_rows
    ]
    if some:
        yield f"A seeded choice is counted: {', '.join(some)}."


def _told(made: ScoreHistogram) -> str:
    where = f"{short_site(made.site)}: scores from {short(made.edges[0])} to {short(made.edges[-1])}"
    ends = (
        sorted({short(end) for end in (min(made.thresholds), max(made.thresholds))})
        if made.thresholds
        else []
    )
    return f"{where}, {'threshold ' + ' to '.join(ends) if ends else 'no threshold'}."


def _histogram(axes: Axes, made: ScoreHistogram) -> None:
    judged, normal = (
        np.where(counts > 0, counts / max(int(counts.sum()), 1), np.nan)
        for counts in (made.scores, made.calibration)
    )
    axes.stairs(judged, made.edges, color=STRANGER, fill=True, alpha=0.45, label="judged rows")
    axes.stairs(
        normal, made.edges, color=NORMAL, linewidth=1.4, baseline=None, label="normal rows of the calibration"
    )
    if made.scores.any() or made.calibration.any():
        axes.set_yscale("log")
    axes.set_xscale("log" if made.log else "linear")
    _threshold(axes, made.thresholds)
    rate = ""
    if made.rates is not None and made.thresholds:
        low, high = (f"{100 * end:.2g}" for end in made.rates)
        rate = f" · flagged of normal rows: {low} to {high} %"
    frame(axes, title=short_site(made.site), xlabel=f"score{rate}")
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)


def _threshold(axes: Axes, thresholds: Sequence[float]) -> None:
    """The one, or the range of those of classes."""
    if len(thresholds) > 1:
        axes.axvspan(
            min(thresholds),
            max(thresholds),
            color=GREY,
            alpha=0.4,
            linewidth=0,
            label="thresholds of classes",
        )
    elif thresholds:
        axes.axvline(thresholds[0], color=INK, linewidth=1.1, linestyle="--", label="threshold")

"""The figures of a page with their captions and descriptions, chosen by what the results hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from tasks import figures
from tasks.figures import Curve, Point, short
from tasks.findings import main_line
from tasks.measures import MEASURES, SiteRow
from tasks.scatter import Dots
from tasks.scatter import sample_map as draw_map
from tasks.tables import short_site

MAPPED = ("participation_ratio", "anisotropy", "accuracy")
"""Measures that are drawn over depth, those that there are."""


class SampleMap(NamedTuple):
    """Samples on the first two components of a site."""

    dots: Dots
    site: str
    label: str | None
    """The label that colours it."""
    n_samples: int
    """Samples of the capture, of which the dots are a seeded draw."""


class Illustration(NamedTuple):
    """A figure with its words."""

    name: str
    title: str
    figure: Figure
    caption: str
    description: str
    """For readers who cannot see it."""


def illustrations(rows: Sequence[SiteRow], sample_map: SampleMap | None) -> Iterator[Illustration]:
    """What can be drawn, in the order of the page."""
    makers: tuple[Callable[[Sequence[SiteRow]], Illustration | None], ...]
    makers = (_profiles, _heat_maps, _spectra, _scree)
    yield from (made for make in makers if (made := make(rows)) is not None)
    if sample_map is not None and len(sample_map.dots.xy):
        yield _map(sample_map)


def chosen_site(rows: Sequence[SiteRow]) -> SiteRow | None:
    """The site of the scree plot: the deepest of the main line that has a spectrum."""
    having = [row for row in rows if row.spectrum is not None]
    line = [row for row in main_line(rows, "participation_ratio") if row.spectrum is not None] or having
    return line[-1] if line else None


def _panels(rows: Sequence[SiteRow]) -> dict[str, Sequence[Point]]:
    found = [m for m in MEASURES if m.key in MAPPED and sum(m.key in row.values for row in rows) > 1]
    found.sort(key=lambda measure: MAPPED.index(measure.key))
    return {m.title: [_point(row, m.key) for row in rows if m.key in row.values] for m in found}


def _point(row: SiteRow, key: str) -> Point:
    low, high = row.intervals.get(key, (None, None))
    return Point(row.place, row.values[key], low, high)


def _profiles(rows: Sequence[SiteRow]) -> Illustration | None:
    panels = _panels(rows)
    drawn = {point.place for points in panels.values() for point in points}
    if len({place.kind for place in drawn}) == len({(place.kind, place.order) for place in drawn}):
        return None
    intervals = any(row.intervals for row in rows)
    band = " Bands are the intervals that the method gives." if intervals else ""
    return Illustration(
        "profiles", "Along the depth", figures.profiles(panels),
        f"{_joined(list(panels))} at each depth; one line per kind of site.{band}",
        "Line charts over depth. " + " ".join(_range_of(name, points) for name, points in panels.items()),
    )  # fmt: skip


def _heat_maps(rows: Sequence[SiteRow]) -> Illustration | None:
    panels = _panels(rows)
    if not panels:
        return None
    return Illustration(
        "heat-map", "Every kind of site, every depth", figures.heat_maps(panels),
        "Rows are kinds of sites, columns are depths; a gap is a site that was not captured.",
        "Heat maps. " + " ".join(_range_of(name, points) for name, points in panels.items()),
    )  # fmt: skip


def _spectra(rows: Sequence[SiteRow]) -> Illustration | None:
    curves = [Curve(row.place, row.spectrum, row.total) for row in rows if row.spectrum is not None]
    if not curves:
        return None
    kinds = figures.ranked_kinds([curve.place for curve in curves])
    left_out = len(kinds) - figures.MOST_PANELS
    more = f" {left_out} further kinds of sites are in the table." if left_out > 0 else ""
    return Illustration(
        "spectra", "Spectrum of every site", figures.spectra(curves),
        "Share of the variance in each component, both axes logarithmic. A straight line is a power law; "
        f"a curve that bends down early has few directions.{more}",
        f"Log-log spectra of {len(curves)} sites of the kinds {', '.join(kinds)}.",
    )  # fmt: skip


def _scree(rows: Sequence[SiteRow]) -> Illustration | None:
    row = chosen_site(rows)
    if row is None or row.spectrum is None:
        return None
    share = row.spectrum / row.total
    low, high = row.band if row.band is not None else (None, None)
    band = " The band is the confidence interval of each eigenvalue." if row.band is not None else ""
    levels = ", ".join(
        f"{level:.0%} in {figures.components_for(share, level)}"
        for level in (0.5, 0.9, 0.99)
        if share.sum() >= level
    )
    return Illustration(
        "scree", f"Scree plot of {short_site(row.site)}", figures.scree(row.spectrum, low, high, row.total),
        f"Left: the leading components. Right: how many hold 50, 90 and 99 % of the variance.{band}",
        f"Scree plot of {row.site}. Variance held by components: {levels}.",
    )  # fmt: skip


def _map(sample_map: SampleMap) -> Illustration:
    dots = sample_map.dots
    drawn = (
        f"{len(dots.xy):,} of {sample_map.n_samples:,} samples"
        if len(dots.xy) < sample_map.n_samples
        else "every sample"
    )
    colors = f", coloured by {sample_map.label}" if sample_map.label else ""
    classes = f" Classes named: {', '.join(dots.names)}." if dots.names else ""
    place = f"at {short_site(sample_map.site)} on its first two principal components"
    return Illustration(
        "samples", "Map of samples", draw_map(dots),
        f"The mean row of {drawn} {place}{colors}. "
        "Two components are a shadow: what overlaps here may be apart elsewhere.",
        f"Scatter plot of {drawn} on two principal components.{classes}",
    )  # fmt: skip


def _range_of(name: str, points: Sequence[Point]) -> str:
    values = np.array([point.value for point in points])
    low, high = short(float(values.min())), short(float(values.max()))
    return f"{name} runs from {low} to {high} over {len(values)} sites."


def _joined(names: list[str]) -> str:
    first, *rest = names
    *middle, last = [first, *(name.lower() for name in rest)]
    return f"{', '.join(middle)} and {last}" if middle else last

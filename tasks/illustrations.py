"""The figures of a page with their captions and descriptions, chosen by what the results hold."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from tasks import figures, profiles
from tasks.catalogue import KEYS, MEASURES, Group, Measure, groups_of, lowered
from tasks.figures import Curve, Point
from tasks.findings import main_line
from tasks.measures import NAMED, SiteRow
from tasks.profiles import Panel
from tasks.scatter import Dots
from tasks.scatter import sample_map as draw_map
from tasks.tables import short_site

MAPPED = ("participation_ratio", "twonn", "anisotropy", "entropy", "nc1", "accuracy")
"""Measures that have a map of kinds by depths, the first few that there are."""
MOST_MAPPED = 3
TOGETHER = 3
"""Panels up to which one figure holds measures of all groups."""


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
    yield from _profiles(rows)
    yield from (made for make in (_heat_maps, _spectra, _scree) if (made := make(rows)) is not None)
    if sample_map is not None and len(sample_map.dots.xy):
        yield _map(sample_map)


def chosen_site(rows: Sequence[SiteRow]) -> SiteRow | None:
    """The site of the scree plot: the deepest of the main line that has a spectrum."""
    having = [row for row in rows if row.spectrum is not None]
    line = [row for row in main_line(rows, "participation_ratio") if row.spectrum is not None] or having
    return line[-1] if line else None


def _points(rows: Sequence[SiteRow], key: str) -> list[Point]:
    having = [row for row in rows if key in row.values]
    if len({(row.place, row.capture, row.stage) for row in having}) < len(
        having
    ):  # a site in several pairs is no line
        having = [row for row in having if not row.partner]
    several = len({row.capture for row in having}) > 1
    stages = len({row.stage for row in rows if any(KEYS[k].group == KEYS[key].group for k in row.values)}) > 1
    named = stages and KEYS[key].group in NAMED
    names = [[row.capture] * several + [row.stage] * (named and bool(row.stage)) for row in having]
    return [_point(row, key, ", ".join(name)) for row, name in zip(having, names, strict=True)]


def _point(row: SiteRow, key: str, named: str) -> Point:
    """A value, under the name of what gave it where there are several."""
    low, high = row.intervals.get(key, (None, None))
    return Point(row.place, row.values[key], low, high, row.nulls.get(key), named)


def _panel(rows: Sequence[SiteRow], measure: Measure) -> Panel:
    return Panel(
        measure.title, _points(rows, measure.key), measure.null, measure.share, measure.log, measure.from_zero
    )


def _profiles(rows: Sequence[SiteRow]) -> Iterator[Illustration]:
    """One figure of few measures, or one for each group of many."""
    groups = {group: _drawn(rows, measures) for group, measures in groups_of(_keys(rows)).items()}
    groups = {group: panels for group, panels in groups.items() if panels}
    if sum(len(panels) for panels in groups.values()) <= TOGETHER:
        together = [panel for panels in groups.values() for panel in panels]
        if together:
            yield _profile("profiles", Group("", "Along the depth", ""), together)
        return
    for group, panels in groups.items():
        yield _profile(f"profiles-{group.key}", group, panels)


def _keys(rows: Sequence[SiteRow]) -> set[str]:
    return {key for row in rows for key in row.values}


def _drawn(rows: Sequence[SiteRow], measures: Sequence[Measure]) -> list[Panel]:
    """Measures with some line to draw: several depths of one kind."""
    panels = [_panel(rows, measure) for measure in measures if measure.drawn]
    return [panel for panel in panels if profiles.deep_kinds([point.place for point in panel.points])]


def _profile(name: str, group: Group, panels: list[Panel]) -> Illustration:
    points = [point for panel in panels for point in panel.points]
    band = " Bands are intervals." if any(point.low is not None for point in points) else ""
    nulls = any(p.null is not None for panel in panels if not profiles.far_off(panel) for p in panel.points)
    null = " Dashed is what the words below a panel say." if nulls else ""
    captures = list(dict.fromkeys(point.capture for point in points if point.capture))
    per = "one line per kind of site" + (f" and of {', '.join(captures)}" if captures else "")
    kinds = profiles.deep_kinds([point.place for point in points])
    left_out = len(kinds) - figures.MOST_PANELS
    more = f" {left_out} further kinds of sites are in the table." if left_out > 0 else ""
    titles = _joined([panel.title for panel in panels])
    lines = f"; {per}" if captures or len(kinds) > 1 else ""
    asked = f"{group.question} " if group.question else ""
    return Illustration(
        name, group.title, profiles.profiles(panels),
        f"{asked}{titles} at each depth{lines}.{band}{null}{more}",
        "Line charts over depth. " + " ".join(profiles.range_of(panel) for panel in panels),
    )  # fmt: skip


def _heat_maps(rows: Sequence[SiteRow]) -> Illustration | None:
    """Kinds by depths; a single kind whose depths are lines already has none."""
    found = [m for m in MEASURES if m.key in MAPPED and sum(m.key in row.values for row in rows) > 1]
    found.sort(key=lambda measure: MAPPED.index(measure.key))
    panels: dict[str, Sequence[Point]]
    panels = {m.title: [_of_capture(point) for point in _points(rows, m.key)] for m in found[:MOST_MAPPED]}
    drawn = [row.place for row in rows if any(m.key in row.values for m in found)]
    if not panels or (len({place.kind for place in drawn}) == 1 and profiles.deep_kinds(drawn)):
        return None
    return Illustration(
        "heat-map", "Every kind of site, every depth", figures.heat_maps(panels),
        "Rows are kinds of sites, columns are depths; a gap is a site that was not measured.",
        "Heat maps. " + " ".join(profiles.range_of(Panel(name, points)) for name, points in panels.items()),
    )  # fmt: skip


def _of_capture(point: Point) -> Point:
    """Captures in rows of their own."""
    if not point.capture:
        return point
    return point._replace(place=point.place._replace(kind=f"{point.place.kind}, {point.capture}"))


def _spectra(rows: Sequence[SiteRow]) -> Illustration | None:
    having = [row for row in rows if row.spectrum is not None]
    captures = len({row.capture for row in having})
    places = [
        r.place._replace(kind=f"{r.place.kind}, {r.capture}") if captures > 1 else r.place for r in having
    ]
    curves = [
        Curve(place, row.spectrum, row.total)
        for row, place in zip(having, places, strict=True)
        if row.spectrum is not None
    ]
    if not curves:
        return None
    kinds = figures.ranked_kinds([curve.place for curve in curves])
    left_out = len(kinds) - figures.most_panels(captures)
    more = f" {left_out} further kinds of sites are in the table." if left_out > 0 else ""
    return Illustration(
        "spectra", "Spectrum of every site", figures.spectra(curves, captures),
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
    of = f", {row.capture}" if len({other.capture for other in rows}) > 1 else ""
    return Illustration(
        "scree", f"Scree plot of {short_site(row.site)}{of}", figures.scree(row.spectrum, low, high, row.total),
        f"Left: the leading components. Right: how many hold 50, 90 and 99 % of the variance.{band}",
        f"Scree plot of {row.site}{of}. Variance held by components: {levels}.",
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


def _joined(names: list[str]) -> str:
    first, *rest = names
    *middle, last = [first, *map(lowered, rest)]
    return f"{', '.join(middle)} and {last}" if middle else last

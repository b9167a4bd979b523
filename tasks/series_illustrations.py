"""Figures of results over several sites together: distances between layers as a map, steps from layer to layer as a line."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.stage import SeriesRef
from tasks import series_figures as draw
from tasks.depth import along_network, places
from tasks.figures import Vector, short
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact, called
from tasks.series_figures import Stretch
from tasks.tables import short_site

SAME = 1e-9
"""Members that differ by no more are one, as subspaces of all directions are: there is nothing to draw."""
MOST_MEMBERS = 200
"""Larger maps are in the artifacts only."""


class Map(NamedTuple):
    """A matrix that a method is known to give."""

    array: str
    title: str
    meaning: str
    share: bool = True
    """Whether 0 and 1 are its ends."""


MAPS = {
    "geometry.subspace_distances": Map(
        "overlap", "Overlap of subspaces", "Mean squared cosine of the angles between two subspaces: 1 where one holds the other."
    ),
    "spectrum.joint": Map(
        "pair_error", "One basis for two sites",
        "Share of the variance that one basis leaves out of two sites together.", share=False,
    ),
}  # fmt: skip
STEPS = "geometry.difference_subspace"


class Names(NamedTuple):
    """What members of a series are called."""

    full: tuple[str, ...]
    """For ticks: depth or site, and capture where there are several."""
    place: tuple[str, ...]
    capture: tuple[str, ...]


def series_illustrations(
    artifacts: Sequence[StageArtifact], names: Mapping[str, str] | None = None
) -> Iterator[Illustration]:
    """What can be drawn of artifacts that were made from several.

    Args:
        artifacts: of the run; others than these are passed over.
        names: ids of captures to what the run calls them.
    """
    for a in artifacts:
        refs = next((refs for refs in a.artifact.stage.series.values() if len(refs) > 1), None)
        if refs is None:
            continue
        if (found := _map(a, _named(refs, names or {}))) is not None:
            yield found
        if a.artifact.stage.method == STEPS and (found := _steps(a, refs, names or {})) is not None:
            yield found


def _named(refs: Sequence[SeriesRef], names: Mapping[str, str]) -> Names:
    """Depths where all are layers of one kind, else sites; captures only where there are several."""
    sites = list(dict.fromkeys(ref.site for ref in refs))
    at = along_network(sites, places(sites))
    one_kind = len({at[ref.site].kind for ref in refs}) == 1
    at_depth = {
        site: (place.label if one_kind and place.label else short_site(site)) for site, place in at.items()
    }
    captures = tuple(called(ref.captures, names) for ref in refs)
    depths = tuple(at_depth[ref.site] for ref in refs)
    full = depths
    if len(set(captures)) > 1:
        both = zip(captures, depths, strict=True)
        full = captures if len(sites) == 1 else tuple(" ".join(pair) for pair in both)
    return Names(full, depths, captures)


def _map(a: StageArtifact, names: Names) -> Illustration | None:
    """The matrix that the method is known for, or the first between all members of one that is not known."""
    n = len(names.full)
    square = [name for name, values in a.arrays.items() if values.shape == (n, n)]
    known = MAPS.get(a.artifact.stage.method)
    if known is None and square:
        known = Map(
            square[0], square[0].replace("_", " ").capitalize(), "Between each two members.", share=False
        )
    if known is None or known.array not in square or n > MOST_MEMBERS:
        return None
    values = np.asarray(a.arrays[known.array], dtype=np.float64)
    diagonal = float(values[0, 0])
    away = values[~np.eye(n, dtype=bool)]
    away = away[np.isfinite(away)]
    if not len(away) or float(np.abs(away - diagonal).max()) < SAME:
        return None
    gaps = int(np.isnan(values).sum())
    gap = " A gap: the two have no such number, as where their widths differ." if gaps else ""
    title = f"{known.title} ({a.stage})"
    return Illustration(
        f"between-{a.stage}", title,
        draw.between(values, names.full, title, known.array.replace("_", " "), (0.0, 1.0) if known.share else None),
        f"{known.meaning}{_chance(a)}{gap}",
        f"Map of {n} by {n} members. Between two different ones it runs from {short(float(away.min()))} to {short(float(away.max()))}.",
    )  # fmt: skip


def _chance(a: StageArtifact) -> str:
    """What random subspaces have, where the artifact tells."""
    found = a.arrays.get("overlap_null")
    if found is None or found.ndim != 2:
        return ""
    away = found[~np.eye(len(found), dtype=bool)]
    away = away[np.isfinite(away)]
    if not len(away):
        return ""
    low, high = short(float(away.min())), short(float(away.max()))
    return (
        f" Random subspaces of these dimensions have {low}."
        if low == high
        else f" Random ones have {low} to {high}."
    )


def _steps(a: StageArtifact, refs: Sequence[SeriesRef], names: Mapping[str, str]) -> Illustration | None:
    """How far the subspace moves from each member to the next."""
    if not all(name in a.arrays and a.arrays[name].size for name in ("magnitude", "first")):
        return None
    order = _in_order(a, refs)
    named = _named(order, names)
    first = np.asarray(a.arrays["first"], dtype=np.int64)
    if int(first.max()) + 1 >= len(order):
        return None
    parts = np.split(np.arange(len(first)), np.flatnonzero(np.diff(first) != 1) + 1)
    stretches = _side_by_side([_stretch(a, order, named, first, part) for part in parts])
    steps = np.asarray(a.arrays["magnitude"], dtype=np.float64)
    if not float(np.nanmax(steps)) > SAME:
        return None
    top = int(np.nanargmax(steps))
    largest = f"{named.full[int(first[top])]} to {named.full[int(first[top]) + 1]}"
    null = _of(a, "magnitude_null", np.arange(len(steps)))
    beside = f", where random subspaces move {short(float(null[top]))}" if null is not None else ""
    dashes = ["dashed: random subspaces"] if null is not None else []
    noise = _of(a, "magnitude_noise", np.arange(len(steps)))
    dashes += (
        ["dotted: what samples of one subspace would show"]
        if noise is not None and np.isfinite(noise).any()
        else []
    )
    below = f" {'; '.join(dashes).capitalize()}." if dashes else ""
    title = f"How far the subspace moves ({a.stage})"
    return Illustration(
        f"steps-{a.stage}", title, draw.steps(stretches, title),
        f"Sum over angles of the difference between neighbours: 0 for equal subspaces.{below} "
        f"The largest step is from {largest}: {short(float(steps[top]))}{beside}.",
        f"Line chart of {len(steps)} steps. The largest is from {largest}.",
    )  # fmt: skip


def _side_by_side(stretches: list[Stretch]) -> list[Stretch]:
    """Single steps at many sites become one line over sites."""
    steps = {one.ticks for one in stretches}
    if len(stretches) < 2 or len(steps) > 1 or len(stretches[0].ticks) > 1:
        return stretches

    def joined(parts: list[Vector | None]) -> Vector | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(stretches) else None

    values = np.concatenate([one.values for one in stretches])
    names = tuple(one.name for one in stretches)
    null, noise = joined([one.null for one in stretches]), joined([one.noise for one in stretches])
    return [Stretch(stretches[0].ticks[0], names, values, null, noise)]


def _in_order(a: StageArtifact, refs: Sequence[SeriesRef]) -> list[SeriesRef]:
    """The members as the result has them, which puts series one after the other; as they came where labels do not tell."""
    by_label = {f"{' + '.join(c[:8] for c in ref.captures)} {ref.site}": ref for ref in refs}
    labels = a.artifact.result.get("labels") or ()
    return [by_label[label] for label in labels] if by_label.keys() >= set(labels) and labels else list(refs)


def _stretch(
    a: StageArtifact,
    order: Sequence[SeriesRef],
    named: Names,
    first: npt.NDArray[np.int64],
    part: npt.NDArray[np.integer[Any]],
) -> Stretch:
    """The steps of one series, which may be at one site over captures or in one capture over sites."""
    at = [int(n) for n in first[part]]
    start, then = order[at[0]], order[at[0] + 1]
    along, name = (
        (named.place, named.capture[at[0]])
        if start.captures == then.captures
        else (named.capture, short_site(start.site))
    )
    ticks = tuple(f"{along[n]} → {along[n + 1]}" for n in at)
    magnitude = np.asarray(a.arrays["magnitude"], dtype=np.float64)[part]
    return Stretch(name, ticks, magnitude, _of(a, "magnitude_null", part), _of(a, "magnitude_noise", part))


def _of(a: StageArtifact, name: str, part: npt.NDArray[np.integer[Any]]) -> Vector | None:
    return np.asarray(a.arrays[name], dtype=np.float64)[part] if name in a.arrays else None

"""Maps of points that stages made, with the labels of the points' samples: what the figures of maps show.

Coordinates are read here; labels are those of the capture, so that another `color_by` needs no other artifact.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.depth import along_network, places
from tasks.map_illustrations import PointMap, StageMaps
from tasks.measures import StageArtifact
from tasks.page import CaptureData
from tasks.sample_map import Means, label_dots, label_of
from tasks.scatter import Dots
from tasks.store.artifacts import open_arrays
from tasks.store.location import Location
from tasks.store.sealed import open_group

METHOD = "geometry.umap"
MOST_SITES = 4
"""Sites of a stage that are drawn, evenly along the depth."""
MOST_DOTS = 1500
"""Points of each."""
SEED = 0


def point_maps(
    root: Location, artifacts: Sequence[StageArtifact], captures: Sequence[CaptureData], color_by: str | None
) -> Iterator[StageMaps]:
    """The maps of each stage that made some.

    Raises:
        DamageError: if coordinates or labels changed.
    """
    of_maps = [a for a in artifacts if a.artifact.stage.method == METHOD]
    for stage in dict.fromkeys(a.stage for a in of_maps):
        members = in_order([a for a in of_maps if a.stage == stage])
        chosen = [members[n] for n in evenly(len(members), MOST_SITES)]
        made = [_read(root, a, captures, color_by) for a in chosen]
        maps = tuple(each for each, _ in made)
        labels = dict.fromkeys(label for _, label in made)
        yield StageMaps(stage, _alike(maps), next(iter(labels)) if len(labels) == 1 else None, len(members))


def evenly(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of 0..n-1, the first and the last among them."""
    return np.unique(np.round(np.linspace(0, n - 1, most)).astype(np.int64))


def in_order(artifacts: Sequence[StageArtifact]) -> list[StageArtifact]:
    """By kind of site, then shallow to deep."""
    sites = list(dict.fromkeys(a.site for a in artifacts))
    at = along_network(sites, places(sites))
    return sorted(artifacts, key=lambda a: (at[a.site].kind, at[a.site].order))


def _read(
    root: Location, a: StageArtifact, captures: Sequence[CaptureData], color_by: str | None
) -> tuple[PointMap, str | None]:
    """Some of the points, seeded, and what colours them."""
    arrays: Any = open_arrays(root, a.artifact.id)
    sample = np.asarray(arrays["sample"][:])
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(sample))[:MOST_DOTS])
    xy, pca = (np.asarray(arrays[name][:], dtype=np.float64)[drawn] for name in ("coordinates", "pca"))
    known = {capture.id: capture for capture in captures}
    members = [known[capture] for capture in a.captures]
    dots, label = _coloured(root, members, sample[drawn], xy, color_by)
    called = " + ".join(dict.fromkeys(capture.name for capture in members))
    return PointMap(a.site, called, dots, dots._replace(xy=pca), a.artifact.result), label


def _coloured(
    root: Location,
    members: Sequence[CaptureData],
    sample: npt.NDArray[np.int64],
    xy: Any,
    color_by: str | None,
) -> tuple[Dots, str | None]:
    """By a label of the one capture, or by captures where the points are of several."""
    if len(members) == 1:
        group = open_group(root, members[0].id)
        label = label_of(group, color_by)
        return label_dots(Means(sample, xy), group, label, None), label
    ends = np.cumsum([capture.spec.layout.n_samples for capture in members])
    names = [capture.spec.partition or capture.name for capture in members]
    return Dots(xy, tuple(names), np.searchsorted(ends, sample, side="right")), "capture"


def _alike(maps: Sequence[PointMap]) -> tuple[PointMap, ...]:
    """Classes numbered as in the first map, so that one colour is one class; others are the rest."""
    names = maps[0].dots.names
    found = []
    for each in maps:
        place = np.array([names.index(n) if n in names else -1 for n in each.dots.names] + [-1])
        dots, pca = (d._replace(names=names, codes=place[d.codes]) for d in (each.dots, each.pca))
        found.append(each._replace(dots=dots, pca=pca))
    return tuple(found)

"""Where clusters of rows lie on two principal components: what the figures of maps of clusters show."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from tasks.cluster_map_illustrations import ClusterMap
from tasks.cluster_rows import Indices, Rows, some_rows
from tasks.measures import StageArtifact
from tasks.page import CaptureData
from tasks.sample_map import classes_of, label_of
from tasks.scatter import Dots
from tasks.store.artifacts import open_arrays
from tasks.store.location import Location
from tasks.store.sealed import open_group

MOST_SITES, MOST_DOTS, MOST_CLUSTERS = 2, 1500, 10
ASSIGNED = "clustering.assign"


def cluster_maps(
    root: Location, artifacts: Sequence[StageArtifact], captures: Sequence[CaptureData], color_by: str | None
) -> Iterator[ClusterMap]:
    """Of the first sites of each stage that clustered rows or labelled them.

    Raises:
        DamageError: if clusters, rows or labels changed.
    """
    known, drawn = {capture.id: capture for capture in captures}, dict[str, int]()
    for made in artifacts:
        if not _clusters_rows(made) or drawn.get(made.stage, 0) >= MOST_SITES:
            continue
        if not all(capture in known for capture in made.captures):
            continue
        found = _map(root, made, [known[capture] for capture in made.captures], color_by)
        if found is not None:
            drawn[made.stage] = drawn.get(made.stage, 0) + 1
            yield found


def _clusters_rows(made: StageArtifact) -> bool:
    arrays, method = made.artifact.arrays, made.artifact.stage.method
    sampled = {name for name in ("cluster", "row") if name in arrays and arrays[name].dims == ("sampled",)}
    return method.startswith("clustering.") and (len(sampled) == 2 or method == ASSIGNED)


def _labels(root: Location, made: StageArtifact) -> tuple[Indices, Indices]:
    """Rows over all captures, ascending, and the cluster of each; rows without one are left out."""
    group: Any = open_arrays(root, made.artifact.id)
    if made.artifact.stage.method == ASSIGNED:
        names = ["cluster"] if "cluster" in group else [f"{capture}/cluster" for capture in made.captures]
        cluster = np.concatenate([np.asarray(group[name][:]) for name in names])
        row = np.flatnonzero(cluster >= 0)
        return row, cluster[row]
    row, cluster = (np.asarray(group[name][:]) for name in ("row", "cluster"))
    order = np.argsort(row, kind="stable")
    order = order[cluster[order] >= 0]
    return row[order], cluster[order]


def _map(
    root: Location, made: StageArtifact, members: Sequence[CaptureData], color_by: str | None
) -> ClusterMap | None:
    row, cluster = _labels(root, made)
    found = some_rows(root, members, made.site, row, MOST_DOTS)
    if found is None or len(found.place) < 3:
        return None
    xy, shares = principal_plane(found.values)
    mine = cluster[found.place]
    group = open_group(root, members[0].id)
    compared = made.artifact.stage.config.get("label")
    label = label_of(group, str(compared) if compared else color_by)
    known = None if label is None else _classes(root, members, found, label)
    dots, classes = matched(xy, shares, mine, known)
    return ClusterMap(made.stage, made.site, dots, classes, label, len(row))


def principal_plane(values: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """[row, 2] scores on the first two principal components, and their shares of the variance."""
    centred = values - values.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    u, s = np.pad(u[:, :2], ((0, 0), (0, max(0, 2 - u.shape[1])))), np.pad(s, (0, max(0, 2 - len(s))))
    total = float((s**2).sum()) or 1.0
    return u * s[:2], (float(s[0] ** 2 / total), float(s[1] ** 2 / total))


def matched(
    xy: np.ndarray, shares: tuple[float, float], cluster: Indices, known: tuple[list[str], Indices] | None
) -> tuple[Dots, Dots | None]:
    """The largest clusters and, in their order, the classes that the best one-to-one map of all shown rows gives them."""
    size = np.bincount(cluster)
    kept = [int(k) for k in np.argsort(-size, kind="stable")[:MOST_CLUSTERS] if size[k] > 0]
    place = np.full(len(size), -1)
    place[kept] = np.arange(len(kept))
    if known is None:
        return Dots(
            xy, tuple(str(k) for k in kept), place[cluster], shares, int((size > 0).sum()) - len(kept)
        ), None
    names, codes = known
    table = np.zeros((len(kept), len(names)))
    there = (codes >= 0) & (place[cluster] >= 0)
    np.add.at(table, (place[cluster][there], codes[there]), 1)
    partner = dict(zip(*linear_sum_assignment(table, maximize=True), strict=True))
    called = [f"{k}: {names[partner[n]]}" if n in partner else str(k) for n, k in enumerate(kept)]
    colour = np.full(len(names) + 1, -1)
    for n, code in partner.items():
        colour[code] = n
    rest = int((size > 0).sum()) - len(kept)
    return Dots(xy, tuple(called), place[cluster], shares, rest), Dots(
        xy, tuple(called), colour[codes], shares
    )


def _classes(
    root: Location, members: Sequence[CaptureData], found: Rows, label: str
) -> tuple[list[str], Indices] | None:
    """Names of classes over captures, and the class of each row, -1 for none; None where a capture lacks the label."""
    names: list[str] = []
    codes = np.full(len(found.place), -1)
    for number, capture in enumerate(members):
        group: Any = open_group(root, capture.id)
        if label not in group["samples/labels"]:
            return None
        here = np.flatnonzero(found.member == number)
        own, code = classes_of(group, label, found.sample[here])
        names += [name for name in own if name not in names]
        at = np.array([*(names.index(name) for name in own), -1])
        codes[here] = at[code]
    return names, codes

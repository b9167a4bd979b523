"""The map of samples: their mean rows on the first two principal components of the last residual site.

Memory is bounded: rows are projected shard by shard and only two sums per sample are kept.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr

from schemas.capture import CaptureSpec
from schemas.layout import Site, SiteLayout, Space
from tasks.depth import RESIDUAL, places
from tasks.illustrations import SampleMap
from tasks.measures import StageArtifact
from tasks.page import CaptureData
from tasks.scatter import Dots
from tasks.store.artifacts import open_arrays
from tasks.store.location import Location
from tasks.store.sealed import open_group

MOST_DOTS = 5000
MOST_CLASSES = 10
MOST_BYTES = 1 << 31
"""Of a larger site only a seeded choice of shards is read."""
SEED = 0
COMPONENTS, MEAN = "components", "mean"


class Means(NamedTuple):
    """Mean rows of samples on two components."""

    sample: npt.NDArray[np.int64]
    """[drawn]: index of the sample in the capture, rising."""
    xy: npt.NDArray[np.float64]
    """[drawn, 2]"""


def map_of(
    root: Location, artifacts: Sequence[StageArtifact], captures: Sequence[CaptureData], color_by: str | None
) -> SampleMap | None:
    """The map of the first capture that allows one; None where there is no basis or no rows.

    Raises:
        DamageError: if the rows or the basis changed.
    """
    for capture in captures:
        found = _basis(artifacts, capture)
        if found is not None and capture.spec.request.keep == "rows":
            return _draw(root, capture, found, color_by)
    return None


def _basis(artifacts: Sequence[StageArtifact], capture: CaptureData) -> StageArtifact | None:
    """The artifact with components at the deepest residual site of a capture, else at its last site."""
    having = {
        a.site: a
        for a in reversed(artifacts)
        if capture.id in a.captures and COMPONENTS in a.artifact.arrays and MEAN in a.artifact.arrays
        if a.artifact.arrays[COMPONENTS].shape[0] >= 2 and " | " not in a.site
    }
    order = {str(layout.site): index for index, layout in enumerate(capture.spec.layout.sites)}
    at = places(list(order))
    best = max(
        (site for site in having if site in order),
        key=lambda site: (
            at[site].kind == RESIDUAL,
            at[site].order if at[site].kind == RESIDUAL else (),
            order[site],
        ),
        default=None,
    )
    return None if best is None else having[best]


def _draw(root: Location, capture: CaptureData, basis: StageArtifact, color_by: str | None) -> SampleMap:
    layout = next(s for s in capture.spec.layout.sites if str(s.site) == basis.site)
    arrays: Any = open_arrays(root, basis.artifact.id)
    axes, center = np.asarray(arrays[COMPONENTS][:2]), np.asarray(arrays[MEAN][:])
    explained = basis.arrays.get("explained")
    shares = (
        (float(explained[0]), float(explained[1])) if explained is not None and len(explained) > 1 else None
    )
    group = open_group(root, capture.id)
    means = sample_means(group, capture.spec, layout, axes, center)
    label = label_of(group, color_by)
    dots = label_dots(means, group, label, shares)
    return SampleMap(dots, str(Site.parse(basis.site)), label, capture.spec.layout.n_samples)


def sample_means(
    group: zarr.Group,
    spec: CaptureSpec,
    layout: SiteLayout,
    axes: npt.NDArray[Any],
    center: npt.NDArray[Any],
    most: int = MOST_DOTS,
    most_bytes: int = MOST_BYTES,
) -> Means:
    """Mean rows of at most `most` seeded samples, minus the centre, on two axes.

    Args:
        group: the capture's arrays.
        spec: what it holds.
        layout: the site.
        axes: [2, feature].
        center: [feature].
        most: samples kept.
        most_bytes: bytes of rows read; samples that lie partly outside the shards read are left out.
    """
    space = spec.layout.space(layout.space)
    basis = axes.astype(np.float64).T
    offset = center.astype(np.float64) @ basis
    count = np.zeros(spec.layout.n_samples, dtype=np.int64)
    sums = np.zeros((spec.layout.n_samples, 2))
    for shard in shards_read(space, layout.width, most_bytes):
        first, last = space.shard_bounds(shard)
        sample = np.asarray(_array(group, f"rows/{space.name}/sample")[first:last])
        rows = np.asarray(_array(group, layout.site.array)[first:last])
        low = int(sample.min())
        n = np.bincount(sample - low)
        count[low : low + len(n)] += n
        for axis, values in enumerate((rows.astype(np.float64) @ basis).T):
            sums[low : low + len(n), axis] += np.bincount(sample - low, weights=values)
    whole = np.diff(np.asarray(_array(group, f"samples/row_start/{space.name}")[:]))
    usable = np.flatnonzero((count == whole) & (whole > 0) & np.asarray(_array(group, "samples/ok")[:]))
    drawn = np.sort(np.random.default_rng(SEED).permutation(usable)[:most])
    return Means(drawn, sums[drawn] / count[drawn, None] - offset)


def shards_read(space: Space, width: int, most_bytes: int) -> list[int]:
    """All shards of a space, or a seeded choice where they are too large together."""
    allowed = max(1, int(most_bytes // (8 * width * space.shard_rows)))
    chosen = np.random.default_rng(SEED).permutation(space.n_shards)[:allowed]
    return [int(shard) for shard in np.sort(chosen)]


def label_of(group: zarr.Group, color_by: str | None) -> str | None:
    """The label asked for if the capture has it, else its first one by name: of classes, where there is one."""
    labels: Any = group["samples/labels"]
    names = sorted(labels.array_keys(), key=lambda name: ("categories" not in labels[name].attrs, name))
    return color_by if color_by in names else next(iter(names), None)


def label_dots(
    means: Means, group: zarr.Group, label: str | None, shares: tuple[float, float] | None
) -> Dots:
    """The means with the largest classes of a label; numbers are cut into five ranges of equal counts."""
    if label is None:
        return Dots(means.xy, (), np.full(len(means.xy), -1), shares)
    names, codes = classes_of(group, label, means.sample)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    kept = [int(c) for c in np.argsort(-counts, kind="stable")[:MOST_CLASSES] if counts[c] > 0]
    place = np.full(len(names) + 1, -1)
    place[kept] = np.arange(len(kept))
    rest = int(np.count_nonzero(counts)) - len(kept)
    return Dots(means.xy, tuple(names[c] for c in kept), place[codes], shares, rest)


def classes_of(
    group: zarr.Group, label: str, sample: npt.NDArray[np.int64]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Class names of a label, and the code of each sample, -1 for none; numbers are cut into five ranges of equal counts."""
    array = _array(group, f"samples/labels/{label}")
    values, categories = np.asarray(array[:])[sample], tuple(array.attrs.get("categories", ()))
    if categories:
        return list(categories), np.where((values >= 0) & (values < len(categories)), values, -1).astype(
            np.int64
        )
    if values.dtype.kind != "f":
        unique, codes = np.unique(values, return_inverse=True)
        return [str(value) for value in unique], codes.astype(np.int64)
    good = np.isfinite(values)
    edges = np.unique(np.quantile(values[good], np.linspace(0, 1, 6))) if good.any() else np.zeros(1)
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)] or [f"{edges[0]:.3g}"]
    codes = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(names) - 1)
    return names, np.where(good, codes, -1).astype(np.int64)


def _array(group: zarr.Group, path: str) -> Any:
    return group[path]

"""A map of a site's samples, or of its rows, on two axes by UMAP, with how far it can be believed, beside two principal components.

Points are the mean rows of samples, or single rows where `sample_rows` is set. Neighbours are exact; the layout is umap-learn's, begun at
the principal components. Trustworthiness falls by neighbours on the map that are none at the site; `kept` is the share of a point's
neighbours that the map has near it. Arrays: `coordinates` (point, axis) of the map, `pca` (point, axis) of the principal components;
`sample` (point) and `row` (point; of a sample its first) over all captures laid end to end. Another seed gives another map: what is read
off it must hold in several.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import distances, map_quality
from tasks.numerics.map_quality import Plane, Quality
from tasks.numerics.umap_layout import Layout, layout

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
NEEDS = {"umap": "umap-learn"}
ARRAYS = {
    **dict.fromkeys(("coordinates", "pca"), ("point", "axis")),
    **dict.fromkeys(("sample", "row"), ("point",)),
}
REFERENCE = (
    "McInnes, Healy, Melville, UMAP: Uniform Manifold Approximation and Projection for dimension reduction (2018). Venna, Kaski, ICANN "
    "(2001): trustworthiness. Kobak, Linderman, Nature Biotechnology 39 (2021) 156: why it begins at principal components"
)
SEEDS = (212,)
CHUNK = 8192
"""Rows whose mean is taken at once, in float64."""
NOISE = 1e-5
"""Of the start, over its size: points at one place must be moved apart."""


class Config(Frozen):
    """Which points, and what the map is to keep."""

    neighbours: int = Field(default=15, ge=2, le=200)
    """Points of a neighbourhood, its own one counted as umap-learn does: few show what is near, many how groups lie."""
    min_dist: float = Field(default=0.1, ge=0, le=1)
    """How near the map may put points; small draws groups together."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine`: of points scaled to length 1."""
    samples: int | None = Field(default=2000, ge=4)
    """Samples to draw, whose mean rows are the points; None: all."""
    sample_rows: int | None = Field(default=None, ge=4)
    """Rows to draw, which are the points themselves, in the place of samples, which are then None."""
    most_points: int = Field(default=20_000, ge=4)
    """Refuse more points; time grows with their square."""
    most_rows: int = Field(default=200_000, ge=4)
    """Refuse more rows in memory, of which means are taken."""
    seed: int = Field(default=0, ge=0)
    """Of the draw and the layout."""

    @model_validator(mode="before")
    @classmethod
    def _rows_or_samples(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("sample_rows") is None:
            return given
        if given.get("samples") is not None:
            raise ValueError(
                "found both samples and sample_rows; set the one whose means, or which themselves, are the points"
            )
        return given | {"samples": None}


class Result(Frozen):
    """How far the map, and the plane of two principal components, can be believed. None where points do not determine a number."""

    n_rows: int
    points: Literal["samples", "rows"]
    """What the points are: mean rows of samples, or rows."""
    n_points: int
    n_zero: int
    """Points of length zero, which have no direction and are left out by `cosine`."""
    n_duplicates: int
    """Points that equal another one."""
    others: int
    """Neighbours of each point, without itself, by which maps are judged."""
    parts: int
    """Connected parts of the neighbour graph: where these lie to each other is told by nothing but the start."""
    trustworthiness: float
    """Of the map: 1 where all neighbours on it are neighbours at the site."""
    trustworthiness_pca: float
    trustworthiness_chance: float
    """Of random places."""
    kept: float
    """Share of the neighbours at the site that are neighbours on the map."""
    kept_pca: float
    kept_chance: float
    distances: float | None
    """Rank correlation of the map's distances with those at the site, over pairs of points."""
    distances_pca: float | None
    explained_pca: float
    """Share of the variance of the points in two principal components."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for too few or too many points.
    """
    rows = config.sample_rows is not None
    there = inputs.n_rows if rows else inputs.n_samples
    n = min(there, (config.sample_rows if rows else config.samples) or there)
    what, option = ("rows", "sample_rows") if rows else ("samples", "samples")
    if n < 2 * config.neighbours:
        raise MethodError(
            f"found {n} {what}, {config.neighbours} neighbours need {2 * config.neighbours} or more; lower neighbours, draw more "
            + ("rows" if rows else "samples, or set sample_rows to map rows")
        )
    if n > config.most_points:
        raise MethodError(
            f"found {n} {what}, a map takes up to {config.most_points} points; set {option} to so many or less"
        )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_points if config.sample_rows is not None else config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Points, their neighbours, the map, and both judged.

    Raises:
        MethodError: for fewer points than a neighbourhood needs, or points that are all equal.

    Cost: 4 point^2 (feature + neighbours) flops, the principal components, and 500 passes over the neighbours.
    """
    points = _points(block, config)
    n, k = len(points.x), config.neighbours - 1
    if n < 2 * config.neighbours:
        raise MethodError(
            f"found {n} good points, {config.neighbours} neighbours need {2 * config.neighbours} or more; lower neighbours"
        )
    if not bool((points.x != points.x[0]).any()):
        raise MethodError(f"all {n} points are equal: there is nothing to map")
    x = _framed(points.x)
    near, distance = map_quality.neighbours(x, k)
    plane = map_quality.plane(x)
    found = _mapped(near, distance, plane.scores, config)
    coordinates = torch.from_numpy(found.coordinates)
    there = x.to(block.index.device)
    qualities = [map_quality.judge(there, near, shown, config.seed) for shown in (coordinates, plane.scores)]
    result = _result(block, points, distance, found, plane, qualities, config)
    arrays = {"coordinates": coordinates, "pca": plane.scores, "sample": points.sample, "row": points.row}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Points(NamedTuple):
    x: Tensor
    sample: Tensor
    row: Tensor
    n_zero: int


def _points(block: Block, config: Config) -> _Points:
    """Points in float64 on the CPU, where all that the layout depends on is computed: it would show the last bit of another device."""
    x, sample, row = (values.cpu() for values in (block["x"], block.sample, block.index))
    if config.sample_rows is None:
        x, sample, row = _means(x, sample, row)
    n, x = len(x), x.double()
    if config.metric == "cosine":
        x, kept = distances.directions(x)
        sample, row = sample[kept], row[kept]
    return _Points(x, sample, row, n - len(x))


def _means(x: Tensor, sample: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean row of each sample, its number, and its first row."""
    there, place, count = torch.unique(sample, return_inverse=True, return_counts=True)
    total = torch.zeros(len(there), x.shape[1], dtype=torch.float64)
    for rows, at in zip(torch.split(x, CHUNK), torch.split(place, CHUNK), strict=True):
        total.index_add_(0, at, rows.double())
    first = torch.full_like(there, torch.iinfo(torch.int64).max).scatter_reduce_(0, place, row, "amin")
    return total / count[:, None], there, first


def _framed(x: Tensor) -> Tensor:
    """About their mean, scaled by a power of two: the layout computes in float32, and a map depends on neither."""
    x = x - x.mean(0)
    return x * 2.0 ** -max(math.frexp(float(x.abs().max()))[1], -1000)


def _mapped(near: Tensor, distance: Tensor, scores: Tensor, config: Config) -> Layout:
    """The layout, from the principal components and a little noise."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 1])))
    start = (scores / scores.abs().max()).numpy() + NOISE * generator.standard_normal(scores.shape)
    own = torch.arange(len(near))[:, None]
    index = torch.cat([own, near], dim=1).numpy()
    reach = torch.nn.functional.pad(distance, (1, 0)).numpy()
    return layout(index, reach, start, config.min_dist, config.seed)


def _result(
    block: Block,
    points: _Points,
    distance: Tensor,
    found: Layout,
    plane: Plane,
    qualities: list[Quality],
    config: Config,
) -> Result:
    n, k = distance.shape
    (map_, pca), (trustworthiness, kept) = qualities, map_quality.by_chance(n, k)
    return Result(
        n_rows=len(block),
        points="samples" if config.sample_rows is None else "rows",
        n_points=n,
        n_zero=points.n_zero,
        n_duplicates=int((distance[:, 0] == 0).sum()),
        others=k,
        parts=found.parts,
        trustworthiness=map_.trustworthiness,
        trustworthiness_pca=pca.trustworthiness,
        trustworthiness_chance=trustworthiness,
        kept=map_.kept,
        kept_pca=pca.kept,
        kept_chance=kept,
        distances=_known(map_.distances),
        distances_pca=_known(pca.distances),
        explained_pca=plane.share,
        caveats=_caveats(found, map_, pca),
    )


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _caveats(found: Layout, map_: Quality, pca: Quality) -> tuple[str, ...]:
    notes = [
        "distances between groups on a UMAP map, their sizes and densities are no measure: `distances` tells how far they follow the site's"
    ]
    if found.parts > 1:
        notes.append(
            f"the neighbour graph falls into {found.parts} parts: where these lie to each other is that of the principal components"
        )
    if map_.trustworthiness <= pca.trustworthiness or map_.kept <= pca.kept:
        notes.append(
            "two principal components keep neighbours as well by one of the two measures, and their distances have a meaning"
        )
    return tuple(notes)

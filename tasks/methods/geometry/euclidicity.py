"""Where a site's rows do not lie as in a flat space: Euclidicity, from the topology of rings around rows.

Around each of some rows the others between two neighbour ranks form a ring. Its persistent homology, parts and loops, is compared with
that of as many points drawn evenly from a flat ring of the same radii; the mean distance over rings, in outer radii, is the row's
Euclidicity. Both rings are thinned to points that cover them evenly, which takes most of the noise away. The same of another flat ring
stands beside: what points as few give where nothing is singular. The reference has no edge: a row whose ring reaches an edge of the data
has an open ring, and counts as one that does not lie flat; the method has no remedy but narrower rings. Arrays, by point: `row`, over all
captures laid end to end, `euclidicity`, `flat` and `local_dimension`.
"""

import math
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import distances, persistence
from tasks.numerics.persistence import Diagrams

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = dict.fromkeys(("row", "euclidicity", "flat", "local_dimension"), ("point",))
REFERENCE = (
    "von Rohrscheidt, Rieck, Topological singularity detection at multiple scales, ICML (2023). Levina, Bickel, NIPS 17 (2005): the local "
    "dimension"
)
SEEDS = (201,)
LEAST, RING = 20, 6
"""Rows, and rows of a ring."""
CHANCE = 0.05
"""Share of flat rings that lie above the level that points are counted by."""


class Config(Frozen):
    """Which rows, and which rings."""

    points: int = Field(default=32, ge=2)
    """Rows that are measured, drawn with the seed among those in memory."""
    inner: tuple[float, ...] = Field(default=(0.05, 0.1), min_length=1)
    """Where rings begin: nearest neighbours, as a share of the distinct rows."""
    outer: tuple[float, ...] = Field(default=(0.2, 0.3), min_length=1)
    """Where rings end, likewise; every inner one goes with every outer one."""
    landmarks: int = Field(default=48, ge=4, le=128)
    """Points that a ring is thinned to, each the farthest from those before; time grows with their third power. The authors' code takes all
    points of a ring."""
    dimension: int | None = Field(default=None, ge=1)
    """Of the flat space; None: the median of local dimensions."""
    reference: Literal["sampled", "model"] = "sampled"
    """`sampled`: flat rings of points, parts and loops apart, the larger distance counts. `model`: one feature from the inner to the outer
    radius, with parts and loops in one diagram, which is the default of the authors' code."""
    references: int = Field(default=2, ge=1)
    """Flat rings that each ring is compared with, if sampled."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the mean's interval."""
    halves: int = Field(default=20, ge=4)
    """Draws of half of the points' samples, for the interval."""
    sample_rows: int | None = Field(default=2000, ge=5)
    """Rows to draw; None: all, if there are no more than the most. Rings of more rows are narrower."""
    most_rows: int = Field(default=10_000, ge=5)
    """Refuse more rows than this: distances take 24 bytes times their square."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    n_duplicates: int
    """Rows that equal an earlier one and are left out."""
    n_points: int
    """Rows measured."""
    dimension: int
    """Of the flat space that rings are compared with."""
    euclidicity: Interval | None
    """Mean over points, in outer radii; its interval is over points, the rows around them held fixed."""
    euclidicity_flat: float
    """Mean of the flat rings beside."""
    level: float
    """Which 5 % of the flat rings' values exceed."""
    share_above: float
    """Of points above the level: about 0.05 where rows lie flat, evenly and without an edge within their rings."""
    largest: float
    """Of the points."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for rings that are empty, or less rows than the thinnest ring needs.
    """
    if min(config.inner) <= 0 or max(config.inner) >= min(config.outer) or max(config.outer) >= 1:
        raise MethodError(
            f"rings go from {config.inner} to {config.outer} of the rows; expected shares above 0 and below 1, each outer one above each "
            "inner one"
        )
    _refuse_few(inputs.n_rows, config)


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The rings around each point.

    Raises:
        MethodError: for less distinct rows than the largest ring needs.

    Cost: row^2 features, and per point and ring about references + 2 reductions of landmark^3 triangles in one thread.
    """
    distance = distances.pairwise(block["x"])
    kept = distances.distinct(distance)
    _refuse_few(len(kept), config)
    distance = distances.part(distance, kept).cpu()
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed])))
    points = np.sort(generator.permutation(len(kept))[: config.points])
    local = np.array([_local_dimension(distance[p], min(config.inner)) for p in points])
    dimension = config.dimension or max(1, min(inputs.widths["x"], round(float(np.median(local)))))
    row = block.index[kept].cpu()[torch.from_numpy(points)]
    found = np.array(
        [_point(distance, int(p), int(r), dimension, config) for p, r in zip(points, row, strict=True)]
    )
    sample = block.sample[kept].cpu()[torch.from_numpy(points)]
    values, flat = found.T
    halves = [float(values[rows].mean()) for rows in half_samples.draw(sample, config.halves, config.seed)]
    level = float(np.quantile(flat, 1 - CHANCE))
    result = Result(
        n_rows=len(block),
        n_duplicates=len(block) - len(kept),
        n_points=len(points),
        dimension=dimension,
        euclidicity=half_samples.interval(float(values.mean()), halves, config.confidence),
        euclidicity_flat=float(flat.mean()),
        level=level,
        share_above=float((values > level).mean()),
        largest=float(values.max()),
        caveats=half_samples.caveats(sample) + _caveats(dimension, values > level),
    )
    columns = (row, *(torch.from_numpy(np.ascontiguousarray(column)) for column in (values, flat, local)))
    return result, {
        name: Array(column, dims) for (name, dims), column in zip(ARRAYS.items(), columns, strict=True)
    }


class _Ring(NamedTuple):
    """Its inner radius, the outer one being 1, and its points."""

    inner: float
    n: int
    dimension: int
    landmarks: int


def _refuse_few(n: int, config: Config) -> None:
    thinnest = min(config.outer) - max(config.inner)
    if n < LEAST or round(thinnest * n) < RING:
        raise MethodError(
            f"found {n} distinct rows; these rings need {max(LEAST, math.ceil(RING / thinnest))}: capture more, or lower `inner`"
        )


def _neighbours(share: float, n: int) -> int:
    return max(1, round(share * (n - 1)))


def _local_dimension(distance: Tensor, share: float) -> float:
    """By the nearest neighbours, 10 at least; the row itself is the nearest."""
    k = max(10, _neighbours(share, len(distance)))
    near = distance.sort().values[1 : k + 1]
    return (k - 1) / max(float((near[-1] / near[:-1]).log().sum()), 1e-12)


def _point(distance: Tensor, point: int, row: int, dimension: int, config: Config) -> tuple[float, float]:
    """Mean over rings, of the row's and of flat ones; flat ones are drawn by the row's own stream."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 1, row])))
    near, order = distance[point].sort(stable=True)
    found = []
    for shares in product(config.inner, config.outer):
        low, high = (_neighbours(share, len(distance)) for share in shares)
        members = order[low : high + 1]
        ring = _Ring(float(near[low] / near[high]), len(members), dimension, config.landmarks)
        own = _thinned(distances.part(distance, members) / near[high], ring)
        found.append(_compared(own, ring, config, generator))
    own_mean, flat_mean = np.mean(found, axis=0)
    return float(own_mean), float(flat_mean)


def _compared(
    own: Diagrams, ring: _Ring, config: Config, generator: np.random.Generator
) -> tuple[float, float]:
    """Of a ring, and of another flat ring, both with the same references."""
    flat = _flat(ring, generator)
    if config.reference == "model":
        return _to_model(own, ring), _to_model(flat, ring)
    references = [_flat(ring, generator) for _ in range(config.references)]
    mine, other = (np.mean([_between(d, reference) for reference in references]) for d in (own, flat))
    return float(mine), float(other)


def _between(a: Diagrams, b: Diagrams) -> float:
    return max(persistence.bottleneck(a.parts, b.parts), persistence.bottleneck(a.loops, b.loops))


def _to_model(a: Diagrams, ring: _Ring) -> float:
    """The part that stays goes with the one of the model."""
    return persistence.bottleneck(np.concatenate([a.parts, a.loops]), np.array([[ring.inner, 1.0]]))


def _flat(ring: _Ring, generator: np.random.Generator) -> Diagrams:
    """Of points drawn evenly from a flat ring."""
    x = generator.standard_normal((ring.n, ring.dimension))
    share = ring.inner**ring.dimension
    radius = (share + (1 - share) * generator.random(ring.n)) ** (1 / ring.dimension)
    x *= (radius / np.linalg.norm(x, axis=1))[:, None]
    return _thinned(distances.pairwise(torch.from_numpy(x)), ring)


def _thinned(distance: Tensor, ring: _Ring) -> Diagrams:
    return persistence.rips(distances.part(distance, persistence.landmarks(distance, ring.landmarks)))


def _caveats(dimension: int, above: np.ndarray) -> tuple[str, ...]:
    notes = []
    if above.mean() > 2 * CHANCE:
        notes.append(
            "rows whose rings reach an edge of the data lie above the level as singular ones do: narrow the rings, or see where they lie"
        )
    if dimension > 2:
        notes.append(
            f"only parts and loops are compared: in {dimension} dimensions, singular rows that show in higher homology alone are missed"
        )
    if above.mean() > 0.5:
        notes.append(
            "most rows lie above the level, as where rows are unevenly dense or curved: compare points with each other"
        )
    if len(above) < 100:
        notes.append(f"the level rests on {len(above)} flat rings' means")
    return tuple(notes)

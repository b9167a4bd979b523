"""How a site's directions fill their space: the length of their minimal spanning tree, beside that of uniform directions.

Rows are scaled to length 1. A tree that is short for its number of points means clusters, collapse, or few dimensions; the growth of its
length with points tells the dimension. Both stand beside what as many uniform directions of as many features give. Array: `edge` (order),
the tree's edges, ascending.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import distances, spanning_tree
from tasks.numerics.spanning_tree import Growth, Plan

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"edge": ("order",)}
REFERENCE = (
    "Mordacq, Loiseaux, Kalogeiton, Oudot, T-REGS: minimum spanning tree regularization for self-supervised learning (2025): the tree's "
    "length as a measure of dimension and uniformity. Steele, Annals of Probability 16 (1988) 1767: the growth"
)
SEEDS = (11,)
LEAST = 24
"""Rows with a direction, so that a half of them still has several sizes of sub-samples."""


class Config(Frozen):
    """Which rows, and how many draws."""

    sample_rows: int | None = Field(default=2000, ge=LEAST)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=10_000, ge=LEAST)
    """Refuse more rows than this: distances take 8 bytes times their square."""
    uniform_draws: int = Field(default=4, ge=2)
    """Sets of uniform directions that are compared with; each costs as much as the rows."""
    halves: int = Field(default=12, ge=4)
    """Draws of half of the samples, for the intervals."""
    draws: int = Field(default=3, ge=1)
    """Sub-samples for a size, whose median length counts."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    n_zero: int
    """Rows of length zero, which have no direction and are left out."""
    n_duplicates: int
    """Directions that equal an earlier one: edges of length zero."""
    width: int
    """Features."""
    length: float
    """Of the tree."""
    relative_length: Interval | None
    """Length over that of as many uniform directions: 1 for uniform ones, 0 for a single direction."""
    uniform_length: float
    """Mean over the sets of uniform directions."""
    uniform_deviation: float
    """Relative standard deviation of a set's length: how far from 1 chance alone goes."""
    dimension: Interval | None
    """From the growth of the length with rows; too low where it is high and rows are few."""
    dimension_uniform: float | None
    """The same of the uniform directions: what this number of rows can show at most."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for less rows than a growth needs, or a single feature.
    """
    if inputs.n_rows < LEAST:
        raise MethodError(f"found {inputs.n_rows} rows, expected {LEAST} or more; capture more samples")
    if inputs.widths["x"] < 2:
        raise MethodError("found one feature, expected two or more: directions of one feature are two points")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The tree of all rows, of halves, and of uniform directions.

    Raises:
        MethodError: for less rows with a direction than a growth needs.

    Cost: (1 + uniform draws) (row^2 features + about 20 trees of up to row points).
    """
    x, kept = distances.directions(block["x"])
    if len(x) < LEAST:
        raise MethodError(
            f"found {len(x)} good rows with a direction, expected {LEAST} or more; capture more samples"
        )
    distance, sample = distances.pairwise(x), block.sample[kept]
    edges = spanning_tree.edges(distance)
    uniform = _uniform(len(x), x.shape[1], config)
    halves = half_samples.draw(sample, config.halves, config.seed)
    parts = [_measured(distances.part(distance, rows), config) for rows in halves]
    whole = _measured(distance, config)
    result = Result(
        n_rows=len(block),
        n_zero=len(block) - len(x),
        n_duplicates=distances.duplicates(distance),
        width=x.shape[1],
        length=whole.length,
        relative_length=half_samples.interval(
            whole.length / uniform.length,
            [part.length for part in parts],
            config.confidence,
            ratio=True,
        ),
        uniform_length=uniform.length,
        uniform_deviation=uniform.deviation,
        dimension=half_samples.interval(
            whole.growth.dimension, [part.growth.dimension for part in parts], config.confidence, ratio=True
        ),
        dimension_uniform=_known(uniform.growth.dimension),
        caveats=half_samples.caveats(sample) + _caveats(whole.growth, uniform.growth),
    )
    return result, {"edge": Array(edges.sort().values, ARRAYS["edge"])}


class _Measured(NamedTuple):
    length: float
    growth: Growth


class _Uniform(NamedTuple):
    length: float
    deviation: float
    growth: Growth


def _measured(distance: Tensor, config: Config) -> _Measured:
    """The length, and the dimension from sub-samples by a stream of the rows' number."""
    return _Measured(
        float(spanning_tree.total(distance)), spanning_tree.growth(_slopes(distance, config), 1.0)
    )


def _slopes(distance: Tensor, config: Config) -> Tensor:
    n = len(distance)
    sizes = spanning_tree.steps(max(4, n // 8), n, 7)
    plan = Plan(sizes, config.draws, config.draws, reruns=2, power=1.0)
    return spanning_tree.slopes(distance, plan, _stream(config, n))


def _uniform(n: int, width: int, config: Config) -> _Uniform:
    """Of sets of uniform directions, from the seed."""
    generator, lengths, slopes = _stream(config, n, width), [], []
    for _ in range(config.uniform_draws):
        rows = torch.from_numpy(generator.standard_normal((n, width)))
        distance = distances.pairwise(distances.directions(rows)[0])
        lengths.append(float(spanning_tree.total(distance)))
        slopes.append(_slopes(distance, config))
    mean = float(np.mean(lengths))
    return _Uniform(mean, float(np.std(lengths, ddof=1)) / mean, spanning_tree.growth(torch.cat(slopes), 1.0))


def _stream(config: Config, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, *key])))


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _caveats(growth: Growth, uniform: Growth) -> tuple[str, ...]:
    notes = []
    if not math.isfinite(growth.dimension):
        notes.append("the tree's length does not grow as that of any dimension, as where most rows are equal")
    elif growth.dimension > 0.7 * uniform.dimension:
        notes.append("the dimension is near the most that so many rows can show")
    return tuple(notes)

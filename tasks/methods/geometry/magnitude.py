"""How many points a site's rows effectively are at many scales (magnitude), and the dimension that their growth shows.

Distances are measured in the median distance of rows, so that sites of any size can be compared: at scale s a similarity falls to 1/e
over 1/s of it. Rows that are equal count once. Beside stands a Gaussian in all features with as many points. Arrays, by scale: `scale`,
`magnitude` with `low` and `high`, `growth` (slope of its logarithm: the dimension at that scale), `gaussian` (magnitude of the Gaussian)
and `condition`; `row` and `weight` (distinct): the rows, over all captures laid end to end, and their weights at the scale that is nearest
to 1, largest at the outside of the cloud.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import distances
from tasks.numerics.magnitude import Magnitude, magnitude

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {
    **dict.fromkeys(("scale", "magnitude", "low", "high", "growth", "gaussian", "condition"), ("scale",)),
    **dict.fromkeys(("row", "weight"), ("distinct",)),
}
REFERENCE = (
    "Leinster, The magnitude of metric spaces, Documenta Mathematica 18 (2013) 857, as used in Approximating the convex hull via metric "
    "space magnitude (2019), whose moments of points are not computed. Andreeva et al., Metric space magnitude and generalisation in "
    "neural networks (2023): the dimension"
)
SEEDS = (228,)
PRECISE = 1e12
"""Condition up to which weights have four digits at least."""


class Config(Frozen):
    """Which rows, and at which scales."""

    scales: tuple[float, ...] = Field(default=tuple(2.0**k for k in range(-3, 6)), min_length=1)
    """Inverse lengths, where the median distance is 1; ascending."""
    halves: int = Field(default=12, ge=4)
    """Draws of half of the samples, for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    sample_rows: int | None = Field(default=1500, ge=2)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=5000, ge=2)
    """Refuse more rows than this; time grows with their cube."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    n_duplicates: int
    """Rows that equal an earlier one and are left out: of one point there is one."""
    median_distance: float | None
    """Of distinct rows: the unit of length."""
    scale: float
    """The one nearest to 1, which `effective_points` and `weight` are at."""
    effective_points: Interval | None
    """Magnitude at that scale: between 1 and the distinct rows. It grows with rows, and so is its interval relative."""
    effective_points_gaussian: float | None
    """Of as many points of a Gaussian in all features."""
    dimension: Interval | None
    """The largest growth over scales; too low where it is high and rows are few."""
    dimension_gaussian: float | None
    """The same of the Gaussian."""
    dimension_scale: float | None
    """Where the growth is largest."""
    n_failed: int
    """Scales at which rounding leaves no answer: rows that are nearly equal, at small scales."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for scales that are not above 0 and ascending, or less than two rows.
    """
    ascending = all(a < b for a, b in zip(config.scales, config.scales[1:], strict=False))
    if not (ascending and config.scales[0] > 0 and math.isfinite(config.scales[-1])):
        raise MethodError(f"scales are {config.scales}, expected ascending numbers above 0")
    if inputs.n_rows < 2:
        raise MethodError(f"found {inputs.n_rows} rows, expected 2 or more; capture more samples")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The magnitude at each scale: of all distinct rows, of halves, and of a Gaussian.

    Cost: scales (2 + halves / 8) row^3 / 3, and row^2 features.
    """
    distance = distances.pairwise(block["x"])
    kept = distances.distinct(distance)
    distance, sample, n = distances.part(distance, kept), block.sample[kept], len(kept)
    unit = distances.median(distance)
    distance = distance / unit if n > 1 else distance
    whole = _curve(distance, config)
    halves = [
        _curve(distances.part(distance, rows), config)
        for rows in half_samples.draw(sample, config.halves, config.seed)
    ]
    gaussian = _curve(_gaussian(n, inputs.widths["x"], config.seed, distance), config)
    place = int(np.argmin(np.abs(np.log(config.scales))))
    points = [
        half_samples.interval(m.value, [half[k].value for half in halves], config.confidence, ratio=True)
        for k, m in enumerate(whole)
    ]
    failed = sum(math.isnan(m.value) for m in whole)
    dimension = _steepest(whole)
    result = Result(
        n_rows=len(block),
        n_duplicates=len(block) - n,
        median_distance=unit if n > 1 else None,
        scale=config.scales[place],
        effective_points=points[place],
        effective_points_gaussian=_known(gaussian[place].value),
        dimension=half_samples.interval(dimension, [_steepest(half) for half in halves], config.confidence),
        dimension_gaussian=_known(_steepest(gaussian)),
        dimension_scale=None
        if math.isnan(dimension)
        else config.scales[[m.growth for m in whole].index(dimension)],
        n_failed=failed,
        caveats=half_samples.caveats(sample) + _caveats(whole, n),
    )
    columns = {
        "scale": list(config.scales),
        "magnitude": [m.value for m in whole],
        "low": [_bound(point, "low") for point in points],
        "high": [_bound(point, "high") for point in points],
        "growth": [m.growth for m in whole],
        "gaussian": [m.value for m in gaussian],
        "condition": [m.condition for m in whole],
    }
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    arrays |= {"row": block.index[kept], "weight": whole[place].weight}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _curve(distance: Tensor, config: Config) -> list[Magnitude]:
    return [magnitude(distance, scale) for scale in config.scales]


def _steepest(curve: list[Magnitude]) -> float:
    return max((m.growth for m in curve if not math.isnan(m.growth)), default=math.nan)


def _gaussian(n: int, width: int, seed: int, like: Tensor) -> Tensor:
    """Distances of a Gaussian's points, in their median."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 2])))
    found = distances.pairwise(torch.from_numpy(generator.standard_normal((n, width))).to(like.device))
    return found / distances.median(found) if n > 1 else found


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _bound(point: Interval | None, end: Literal["low", "high"]) -> float:
    bound = None if point is None else getattr(point, end)
    return math.nan if bound is None else float(bound)


def _caveats(curve: list[Magnitude], n: int) -> tuple[str, ...]:
    notes = ["magnitude grows with rows: compare sites at equal numbers of rows"]
    found = [m for m in curve if not math.isnan(m.value)]
    if len(found) < len(curve):
        notes.append(f"{len(curve) - len(found)} small scales have no answer: rows are too near each other")
    if any(m.condition > PRECISE for m in found):
        notes.append("conditions above 1e12: weights at these scales have few digits")
    if found and n > 1 and found[-1].value < 0.9 * n:
        notes.append("rows are not apart at the largest scale: the growth may be larger beyond")
    return tuple(notes)

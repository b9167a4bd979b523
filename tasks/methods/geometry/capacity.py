"""How many nearly orthogonal directions a site could hold, judged by the cosines that its rows accept.

The cosines of all pairs of rows give the accepted deviation from orthogonality: their mean and two standard deviations. A published fit
turns it into a number of directions. Beside it stands what uniform directions give: their cosines have standard deviation
1 / sqrt(features). Arrays: `count` and `cosine` (bin), how many pairs have a cosine in a bin, and the bin's middle.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import distances, packing

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"count": ("bin",), "cosine": ("bin",)}
REFERENCE = (
    "Representational capacity: geometric limits on feature representation in transformer language models (2026): the boundary and the "
    "adjusted relationship, with the constants of the authors' code"
)
SEEDS = (247,)
BLOCK = 1024
"""Rows whose cosines are counted at once."""
PARALLEL = 1e-12
"""A cosine above 1 less this is that of the same direction twice."""


class Config(Frozen):
    """Which rows, and where the boundary lies."""

    reach: float = Field(default=2.0, gt=0)
    """Standard deviations above the mean cosine up to which similarity counts as incidental; 2 is the published one."""
    limit: float = Field(default=0.1, gt=0, le=1)
    """A boundary of this or more means that directions are not near-orthogonal, so that no capacity is given; 0.1 is the published one."""
    bins: int = Field(default=300, ge=2, le=10_000)
    """Of the cosines, from -1 to 1."""
    halves: int = Field(default=20, ge=4)
    """Draws of half of the samples, for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    sample_rows: int | None = Field(default=5000, ge=4)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=20_000, ge=4)
    """Refuse more rows than this; time grows with their square."""
    seed: int = Field(default=0, ge=0)
    """Of the draws."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    n_zero: int
    """Rows of length zero, which have no direction and are left out."""
    n_parallel_pairs: int
    """Pairs of rows with the same direction, as equal rows are; they count among the cosines."""
    width: int
    """Features."""
    mean_cosine: Interval | None
    """Of pairs of different rows; 0 for uniform directions."""
    deviation: Interval | None
    """Standard deviation of the cosines."""
    deviation_uniform: float
    """Of uniform directions: 1 / sqrt(features)."""
    boundary: Interval | None
    """Mean and `reach` standard deviations: how far from orthogonal directions may be."""
    boundary_uniform: float
    """Of uniform directions."""
    share_beyond: float
    """Of pairs whose cosine is above the boundary or below its negative; 0.0455 for a normal law about 0 and reach 2."""
    capacity: Interval | None
    """Directions that fit within the boundary, by the published fit; None where the boundary is at the limit or more, or not above 0."""
    capacity_uniform: float | None
    """The same at the boundary of uniform directions."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for less than four rows.
    """
    if inputs.n_rows < 4:
        raise MethodError(f"found {inputs.n_rows} rows, expected 4 or more; capture more samples")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Cosines of all pairs, and their mean and deviation in halves of the samples.

    Raises:
        MethodError: for less than four rows with a direction.

    Cost: row^2 features, and for each half row feature^2.
    """
    z, kept = distances.directions(block["x"])
    if len(z) < 4:
        raise MethodError(
            f"found {len(z)} good rows with a direction, expected 4 or more; capture more samples"
        )
    sample, width = block.sample[kept], z.shape[1]
    whole = _cosines(z)
    parts = [_cosines(z[rows]) for rows in half_samples.draw(sample, config.halves, config.seed)]
    boundary = half_samples.interval(
        _boundary(whole, config), [_boundary(part, config) for part in parts], config.confidence
    )
    counted = _counted(z, _boundary(whole, config), config.bins)
    uniform = config.reach / math.sqrt(width)
    result = Result(
        n_rows=len(block),
        n_zero=len(block) - len(z),
        n_parallel_pairs=counted.parallel,
        width=width,
        mean_cosine=half_samples.interval(whole.mean, [part.mean for part in parts], config.confidence),
        deviation=half_samples.interval(
            whole.deviation, [part.deviation for part in parts], config.confidence
        ),
        deviation_uniform=1 / math.sqrt(width),
        boundary=boundary,
        boundary_uniform=uniform,
        share_beyond=counted.beyond / (len(z) * (len(z) - 1) // 2),
        capacity=None if boundary is None else _capacity(boundary, width, config.limit),
        capacity_uniform=_directions(uniform, width, config.limit),
        caveats=half_samples.caveats(sample) + _caveats(_boundary(whole, config), config),
    )
    middle = (torch.arange(config.bins, dtype=torch.float64) + 0.5) * (2 / config.bins) - 1
    return result, {"count": Array(counted.bins, ARRAYS["count"]), "cosine": Array(middle, ARRAYS["cosine"])}


class _Cosines(NamedTuple):
    """Of pairs of different rows."""

    mean: float
    deviation: float


def _cosines(z: Tensor) -> _Cosines:
    """From sums over rows: the squares of all cosines add up to the squares of the second moment."""
    n = len(z)
    if n < 2:
        return _Cosines(math.nan, math.nan)
    pairs, gram = n * (n - 1), z.T @ z if z.shape[1] < n else z @ z.T
    mean = (float(z.sum(0).square().sum()) - n) / pairs
    square = (float(gram.square().sum()) - n) / pairs
    return _Cosines(mean, math.sqrt(max(0.0, square - mean**2)))


def _boundary(cosines: _Cosines, config: Config) -> float:
    return cosines.mean + config.reach * cosines.deviation


class _Counted(NamedTuple):
    bins: Tensor
    beyond: int
    parallel: int


def _counted(z: Tensor, boundary: float, bins: int) -> _Counted:
    """Pairs i < j by their cosine, block by block."""
    total, beyond, parallel = torch.zeros(bins, dtype=torch.int64), 0, 0
    for low in range(0, len(z), BLOCK):
        cosines = z[low : low + BLOCK] @ z.T
        later = torch.ones_like(cosines, dtype=torch.bool).triu_(low + 1)
        found = cosines[later]
        place = ((found + 1) * (bins / 2)).floor().long().clamp_(0, bins - 1)
        total += torch.bincount(place, minlength=bins).cpu()
        beyond += int((found.abs() > boundary).sum())
        parallel += int((found > 1 - PARALLEL).sum())
    return _Counted(total, beyond, parallel)


def _directions(boundary: float, width: int, limit: float) -> float | None:
    if not 0 < boundary < limit:
        return None
    found = packing.directions(boundary, width)
    return found if math.isfinite(found) else None


def _capacity(boundary: Interval, width: int, limit: float) -> Interval | None:
    """Of a boundary and its bounds; a bound is None where it is beyond the limit."""
    value = _directions(boundary.value, width, limit)
    if value is None:
        return None
    low, high = (
        None if bound is None else _directions(max(bound, 1e-9), width, limit)
        for bound in (boundary.low, boundary.high)
    )
    return Interval(value=value, corrected=None, low=low, high=high)


def _caveats(boundary: float, config: Config) -> tuple[str, ...]:
    notes = ["capacity is exponential in the boundary and rests on a fit; read its order of magnitude only"]
    if boundary >= config.limit:
        notes.append(
            f"the boundary is {boundary:.3g}, at the limit or beyond: directions are not near-orthogonal"
        )
    return tuple(notes)

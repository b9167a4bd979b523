"""The minimal spanning tree of some points, and the dimension that the growth of its length tells.

Of n points of a space of dimension d, the tree's lengths to the power a (below d) add up to about n^((d - a) / d) (Steele 1988); this sum
is also that of the lifetimes of connected parts in persistent homology, to the power a (Adams et al. 2020). So the slope m of its logarithm
against log n gives d = a / (1 - m).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics.distances import Distances

MOST_BYTES = 1 << 28
"""Of the distances of sub-samples that are worked on at once."""


class Plan(NamedTuple):
    """Which sub-samples the growth is read from."""

    sizes: tuple[int, ...]
    """Points of each, ascending."""
    draws: int
    """Trees for a size; the median of their lengths counts."""
    large_draws: int
    """The same, for sizes of half of the points or more."""
    reruns: int
    """Slopes from new sub-samples."""
    power: float
    """Of the edges' lengths."""


class Growth(NamedTuple):
    """The dimension of points; NaN where lengths do not tell it."""

    dimension: float
    """From the mean slope over reruns."""
    deviation: float
    """Standard deviation of the dimension of one rerun."""


def edges(distance: Float64[Tensor, "*batch row row"]) -> Float64[Tensor, "*batch edge"]:
    """Lengths of the edges of each minimal spanning tree, in the order in which Prim's algorithm takes them from row 0.

    Zero distances are edges like others. The lengths do not depend on how ties are broken.

    Cost: row^2 comparisons in row steps, for a batch together.
    """
    batch, n = distance.shape[:-2], distance.shape[-1]
    if n < 2:
        return distance.new_zeros(*batch, 0)
    every = distance.reshape(-1, n, n)
    found = distance.new_empty(len(every), n - 1)
    each = torch.arange(len(every), device=distance.device)
    near, taken = every[:, 0].clone(), torch.zeros_like(every[:, 0])
    near[:, 0] = taken[:, 0] = math.inf
    for k in range(n - 1):
        length, place = near.min(1)
        found[:, k] = length
        taken[each, place] = math.inf
        near = torch.minimum(near, every[each, place]) + taken
    return found.reshape(*batch, n - 1)


def total(distance: Float64[Tensor, "*batch row row"], power: float = 1.0) -> Float64[Tensor, "*batch"]:
    """The sum of the edges' lengths to a power."""
    return edges(distance).pow(power).sum(-1)


def steps(smallest: int, n: int, intervals: int) -> tuple[int, ...]:
    """Sizes from the smallest up to less than n by equal steps, the n-th part of the way each, as GPTID takes them."""
    step = max(1, (n - smallest) // intervals)
    return tuple(range(smallest, n - step, step))


def slopes(distance: Distances, plan: Plan, generator: np.random.Generator) -> Float64[Tensor, " rerun"]:
    """Growth of the logarithm of trees' lengths over that of size, by least squares, from sub-samples without replacement.

    Args:
        distance: of all points.
        plan: sizes of at most as many points as there are; slopes are NaN for less than two.
        generator: of the sub-samples.

    Cost: reruns draws sum(size^2) comparisons; memory is bounded.
    """
    if len(plan.sizes) < 2:
        return torch.full((plan.reruns,), math.nan, dtype=torch.float64, device=distance.device)
    lengths = torch.stack([_median_lengths(distance, size, plan, generator) for size in plan.sizes], dim=1)
    x = torch.tensor(plan.sizes, dtype=torch.float64, device=distance.device).log()
    x = x - x.mean()
    return (lengths.log() @ x) / x.square().sum()


def growth(slopes: Float64[Tensor, " rerun"], power: float) -> Growth:
    """The dimension that slopes tell: that of their mean; NaN where it is 1 or more, or a length was zero."""
    slope = float(slopes.mean())
    if not slope < 1:
        return Growth(math.nan, math.nan)
    spread = float(slopes.std()) if len(slopes) > 1 else math.nan
    return Growth(power / (1 - slope), power / (1 - slope) ** 2 * spread)


def _median_lengths(distance: Distances, size: int, plan: Plan, generator: np.random.Generator) -> Tensor:
    """[rerun]: the median over draws, the mean of both where two are in the middle."""
    draws = plan.large_draws if len(distance) <= 2 * size else plan.draws
    chosen = np.stack([generator.permutation(len(distance))[:size] for _ in range(plan.reruns * draws)])
    found = [
        total(distance[rows[:, :, None], rows[:, None, :]], plan.power)
        for rows in _pieces(torch.from_numpy(chosen).to(distance.device), size)
    ]
    return torch.cat(found).reshape(plan.reruns, draws).quantile(0.5, dim=1)


def _pieces(rows: Tensor, size: int) -> Sequence[Tensor]:
    return torch.split(rows, max(1, MOST_BYTES // (8 * size * size)))

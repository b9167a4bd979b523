"""Means of combinations as sums of parts, one for each value of each concept: weighted least squares, and marginal means."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

Means = Float64[Tensor, "cell feature"]
Weights = Float64[Tensor, " cell"]
Values = Int64[Tensor, "cell concept"]
EPS = torch.finfo(torch.float64).eps


class Additive(NamedTuple):
    """What parts make of each combination."""

    fitted: Means
    """Centre and parts together."""
    parts: list[Float64[Tensor, "value feature"]]
    """Of each concept; weighted by rows they sum to zero. Zero for values that do not occur, and for what rounding alone makes."""
    occurs: list[Bool[Tensor, " value"]]
    leverage: Weights
    """How much a combination's mean decides on its own fit: 1 where no others tell its parts."""
    degrees: int
    """Of freedom that parts have beside the centre."""
    confounded: int
    """Differences between parts that the combinations do not tell apart, because concepts vary together."""


def additive(mean: Means, weight: Weights, value: Values, sizes: tuple[int, ...]) -> Additive:
    """The parts whose sums come closest to the means, of those the smallest.

    Args:
        mean: of the rows of each combination.
        weight: of its rows.
        value: which value of each concept it combines.
        sizes: values of each concept.

    Cost: O(cell (sum of sizes)^2 + cell feature (sum of sizes)).
    """
    centre = weight @ mean / weight.sum()
    root = weight.sqrt()[:, None]
    design = torch.cat(
        [torch.ones_like(root), *(_one_hot(v, k) for v, k in zip(value.T, sizes, strict=True))], 1
    )
    u, s, v = torch.linalg.svd(root * design, full_matrices=False)
    kept = s > 1e-10 * s[0]
    u, s, v = u[:, kept], s[kept], v[kept]
    along = u.T @ (root * (mean - centre))
    parts, occurs, first = [], [], 1
    solved = v.T @ (along / s[:, None])
    for column, size in zip(value.T, sizes, strict=True):
        share = (
            torch.zeros(size, dtype=weight.dtype, device=weight.device).index_add_(0, column, weight)
            / weight.sum()
        )
        there = share > 0
        part = solved[first : first + size]
        parts.append(_told(part - share @ part, mean) * there[:, None])
        occurs.append(there)
        first += size
    free = sum(int(there.sum()) - 1 for there in occurs)
    return Additive(
        (u @ along) / root + centre,
        parts,
        occurs,
        u.square().sum(1),
        int(kept.sum()) - 1,
        free - (int(kept.sum()) - 1),
    )


def marginal(mean: Means, weight: Weights, value: Values, sizes: tuple[int, ...]) -> Additive:
    """Parts that are means over the rows of a value, less that of all rows.

    They are those of least squares where all combinations are equally frequent.
    """
    centre = weight @ mean / weight.sum()
    fitted, parts, occurs = centre.expand_as(mean), [], []
    for column, size in zip(value.T, sizes, strict=True):
        rows = torch.zeros(size, dtype=weight.dtype, device=weight.device).index_add_(0, column, weight)
        sums = torch.zeros((size, mean.shape[1]), dtype=mean.dtype, device=mean.device)
        sums.index_add_(0, column, weight[:, None] * (mean - centre))
        part = _told(sums / rows.where(rows > 0, 1.0)[:, None], mean)
        parts.append(part)
        occurs.append(rows > 0)
        fitted = fitted + part[column]
    least = additive(mean, weight, value, sizes)
    return Additive(fitted, parts, occurs, least.leverage, least.degrees, least.confounded)


def cosine_at_random(width: int) -> float:
    """Mean |cosine| of two uniform directions."""
    return math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def cosines(
    a: Float64[Tensor, "value feature"], b: Float64[Tensor, "other feature"]
) -> Float64[Tensor, "value other"]:
    """|cosine| of each pair; NaN for parts that are zero."""
    lengths = torch.linalg.vector_norm(a, dim=1)[:, None] * torch.linalg.vector_norm(b, dim=1)
    found: Tensor = ((a @ b.T) / lengths).abs()
    return found


def directions_for(part: Float64[Tensor, "value feature"], share: float) -> int:
    """Fewest directions that hold this share of the squares of a concept's parts; 0 if they are zero."""
    square = torch.linalg.svdvals(part).square()
    if float(square.sum()) <= 0:
        return 0
    held = square.cumsum(0) / square.sum()
    return int((held < share - 1e-12).sum()) + 1


def _told(part: Tensor, mean: Means) -> Tensor:
    """Zero where rounding of the means alone makes a part, whose direction says nothing."""
    floor = 64 * EPS * float(torch.linalg.vector_norm(mean, dim=1).max())
    return part.masked_fill(torch.linalg.vector_norm(part, dim=1, keepdim=True) <= floor, 0.0)


def _one_hot(value: Tensor, size: int) -> Tensor:
    found: Tensor = torch.nn.functional.one_hot(value, size).double()
    return found

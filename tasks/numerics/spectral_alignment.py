"""How many rows that a linear map takes point to one side of its leading direction.

For y = W x with W [out, in] the direction is the first right singular vector v of W. The share of rows whose cosine with v has the sign
that most have lies in [0.5, 1]: 0.5 for rows that know nothing of v, 1 where all push the same way. Rows at right angles to v are dropped.

Spectral Alignment as an early sign of loss explosion in pretraining (2025): the statistic. Golub, Van Loan, Matrix Computations (4th
edition), 8.2: power iteration, here of W'W.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

EXACT = 64
"""Smaller side of a map up to which its singular vectors are decomposed exactly."""
ROUNDS = 50
"""Products with W and W' that a direction takes at most."""
TOLERANCE = 1e-3
"""Residual at which it is taken: |W'W v - s^2 v| / s^2."""


class Direction(NamedTuple):
    """The leading right singular vector of a map."""

    vector: Float[Tensor, " feature"]
    """Of length 1; its sign means nothing."""
    residual: float
    """|W'W v - s^2 v| / s^2 with s = |W v|: the sine of its angle to the true one is at most this over the relative gap of s^2. 0 where it
    was decomposed, NaN for a map that is zero or not finite."""


def leading_direction(
    weight: Float[Tensor, "out feature"], start: Float[Tensor, " feature"] | None = None
) -> Direction:
    """The leading right singular vector: decomposed where the map is small, else by power iteration.

    Args:
        weight: the map, [out, in].
        start: a vector from before, such as that of the step before; None: a seeded draw.

    Cost: 4 out x in for each round, one or two from a good start; out x in x min(out, in) for small maps.
    """
    wide = weight.detach().float()
    if not bool(wide.isfinite().all()) or not bool(wide.any()):
        return Direction(wide.new_full((wide.shape[1],), math.nan), math.nan)
    wide = wide / wide.abs().max()  # squares of lengths stay in reach
    if min(wide.shape) <= EXACT:
        return Direction(torch.linalg.svd(wide, full_matrices=False).Vh[0], 0.0)
    vector = _drawn(wide) if start is None or not bool(start.isfinite().all()) else start
    residual = math.inf
    for _ in range(ROUNDS):
        image = wide.T @ (wide @ vector)
        square = float(image @ vector)
        residual = float(torch.linalg.vector_norm(image - square * vector)) / (square or math.nan)
        vector = image / torch.linalg.vector_norm(image)
        if not residual > TOLERANCE:
            break
    return Direction(vector, residual)


def majority_share(rows: Float[Tensor, "row feature"], vector: Float[Tensor, " feature"]) -> float:
    """Share of the rows on the side of a direction on which most are, in [0.5, 1]; NaN where no row is on a side.

    Args:
        rows: what the map takes; rows that are not finite are dropped.
        vector: the direction; its length and sign mean nothing.
    """
    products = rows.to(vector.dtype) @ vector
    positive, negative = int((products > 0).sum()), int((products < 0).sum())
    return max(positive, negative) / (positive + negative) if positive + negative else math.nan


def centred_if_one_sided(rows: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
    """Rows without a negative number, as after ReLU, less the mean of their own features; others as they are.

    Such rows all lie on one side of any direction without negative entries, whatever the training does.
    """
    return rows - rows.mean(1, keepdim=True) if rows.numel() and not bool((rows < 0).any()) else rows


def singular_values(rows: Float[Tensor, "row feature"]) -> Float64[Tensor, " value"]:
    """Of the rows about their mean, descending; empty where rows are not finite."""
    wide = rows.double()
    if not len(wide) or not bool(wide.isfinite().all()):
        return wide.new_zeros(0)
    found: Tensor = torch.linalg.svdvals(wide - wide.mean(0))
    return found


def _drawn(weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(weight.shape[1], generator=generator).to(weight)
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit

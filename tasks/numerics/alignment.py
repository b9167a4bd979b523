"""Maps between two sets of features from the moments of paired rows: canonical correlations, regression, rotation.

All work on second moments about a mean; `about` gives those of other rows about the same mean, so that a map is tried on rows that it
was not fitted to.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import joint_moments
from tasks.numerics.joint_moments import State
from tasks.numerics.spectrum import eigen, floor

LOST = 1e-8
"""Directions of a cross-covariance below this times the largest are rounding, and in no rotation."""


class Paired(NamedTuple):
    """Second moments of paired rows about some point, divided by rows."""

    n: int
    point: Float64[Tensor, " both"]
    xx: Float64[Tensor, "left left"]
    xy: Float64[Tensor, "left right"]
    yy: Float64[Tensor, "right right"]

    @property
    def variances(self) -> tuple[float, float]:
        """Total ones of both sides."""
        return float(self.xx.trace()), float(self.yy.trace())


class Whitening(NamedTuple):
    """The leading components of a side, each scaled to variance 1."""

    rows: Float64[Tensor, "component feature"]
    """Maps a feature vector to scaled scores."""
    basis: Float64[Tensor, "component feature"]
    """Orthonormal rows."""


class Canonical(NamedTuple):
    """Canonical correlations within the leading components of both sides."""

    correlations: Float64[Tensor, " canonical"]
    x: Float64[Tensor, "canonical left"]
    """Weights whose variates have variance 1 (without a ridge)."""
    y: Float64[Tensor, "canonical right"]
    weight: Float64[Tensor, " canonical"]
    """How much each variate of x accounts for the features of x, of sum 1: the weights of projection-weighted correlation."""
    white_x: Whitening
    white_y: Whitening


def paired(state: State) -> Paired:
    """Moments about the mean of the rows.

    Raises:
        MethodError: for a state of no rows.
    """
    return _of(joint_moments.centred(state))


def about(state: State, point: Float64[Tensor, " both"]) -> Paired:
    """Moments of rows about a point, such as the mean of others."""
    return _of(joint_moments.move(state, point))


def _of(state: State) -> Paired:
    n, left, g = int(state["n"]), int(state["left"]), state["g"] / state["n"]
    return Paired(n, state["c"], g[:left, :left], g[:left, left:], g[left:, left:])


def whitening(
    moments: Float64[Tensor, "feature feature"], share: float, ridge: float, most: int
) -> Whitening:
    """The fewest leading components that hold a share of the variance.

    Args:
        moments: second moments.
        share: of the trace; 1 keeps all that rounding leaves.
        ridge: added to each variance, times their mean.
        most: components at most.

    Cost: feature^3.
    """
    found = eigen(moments)
    rank = int((found.values > floor(found.values, 0.0, "float64")).sum())
    held = found.values.clamp(min=0).cumsum(0)
    enough = int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1 if len(held) else 0
    kept = max(0, min(rank, enough if share < 1 else rank, most))
    values = found.values[:kept] + ridge * float(moments.trace()) / max(1, len(moments))
    return Whitening(found.vectors[:kept] / values.sqrt()[:, None], found.vectors[:kept])


def canonical(p: Paired, share: float = 1.0, ridge: float = 0.0) -> Canonical:
    """Canonical correlations of the leading components of both sides (SVCCA with a share below 1).

    Cost: left^3 + right^3.
    """
    white_x, white_y = (whitening(side, share, ridge, max(0, p.n - 1)) for side in (p.xx, p.yy))
    u, rho, v = torch.linalg.svd(white_x.rows @ p.xy @ white_y.rows.T, full_matrices=False)
    x, y = u.T @ white_x.rows, v @ white_y.rows
    largest = x.gather(1, x.abs().argmax(1, keepdim=True)).sign() if x.numel() else x.new_ones(len(x), 1)
    x, y = x * largest, y * largest
    amount = (x @ p.xx).abs().sum(1)
    weight = amount / amount.sum() if len(amount) else amount
    return Canonical(rho.clamp(max=1.0), x, y, weight, white_x, white_y)


def correlations(p: Paired, found: Canonical) -> Float64[Tensor, " canonical"]:
    """Of the same pairs of variates over other rows; 0 where one does not vary there."""
    cross = ((found.x @ p.xy) * found.y).sum(1)
    sizes = [((w @ side) * w).sum(1) for w, side in ((found.x, p.xx), (found.y, p.yy))]
    size = (sizes[0] * sizes[1]).clamp(min=0).sqrt()
    return torch.where(size > 0, cross / size.where(size > 0, 1.0), 0.0)


def mean_square_by_chance(left: int, right: int, n: int) -> float:
    """Expected mean of squared correlations of independent rows, with components left and right: max / (n - 1), at most 1."""
    return min(1.0, max(left, right) / max(1, n - 1))


def largest_by_chance(left: int, right: int, n: int) -> float:
    """The largest correlation that independent rows give: the edge of Wachter's law; 1 where components outnumber rows."""
    a, b = left / max(1, n - 1), right / max(1, n - 1)
    if a + b >= 1:
        return 1.0
    return math.sqrt(a * (1 - b)) + math.sqrt(b * (1 - a))


def regression(p: Paired, white: Whitening) -> Float64[Tensor, "left right"]:
    """Least squares of y from the components of x that `white` keeps, with its ridge."""
    return white.rows.T @ (white.rows @ p.xy)


def backwards(p: Paired) -> Paired:
    """With x and y exchanged."""
    left = len(p.xx)
    return Paired(p.n, torch.cat([p.point[left:], p.point[:left]]), p.yy, p.xy.T, p.xx)


def residual(p: Paired, weights: Float64[Tensor, "left right"]) -> float:
    """The mean of |y - x W|^2 over rows."""
    explained = 2 * (weights * p.xy).sum() - (weights * (p.xx @ weights)).sum()
    return max(0.0, float(p.yy.trace() - explained))


def rotation(xy: Float64[Tensor, "left right"]) -> Float64[Tensor, "left right"]:
    """The orthogonal map Q with the least |X Q - Y|, as a partial isometry: directions lost in rounding are not in it.

    Of other widths the narrower side is taken to have zeros.
    """
    u, s, v = torch.linalg.svd(xy, full_matrices=False)
    kept = int((s > LOST * s[0]).sum()) if len(s) else 0
    turn: Tensor = u[:, :kept] @ v[:kept]
    return turn


def similarity(p: Paired, turn: Float64[Tensor, "left right"]) -> float:
    """The cosine of X Q and Y as long vectors: 1 for a rotated, scaled copy; NaN where a side does not vary."""
    x, y = p.variances
    return float((turn * p.xy).sum()) / math.sqrt(x * y) if x > 0 and y > 0 else math.nan

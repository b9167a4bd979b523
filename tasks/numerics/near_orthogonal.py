"""Linear maps that are orthogonal but for a stated deviation: min |X W - Y|^2 with |W'W - I|_F at most lambda.

The identity is that of the narrower side (W W' where X is narrower). A projected gradient with steps 1 / L never goes up: the set is not
convex, yet each step solves its quadratic bound exactly. It begins at the best rotation, the answer for lambda = 0.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64
from scipy.optimize import brentq
from torch import Tensor

Map = Float64[Tensor, "left right"]
Vector = npt.NDArray[np.float64]
NEWTON = 10


class NearOrthogonal(NamedTuple):
    """A map."""

    weights: Map
    deviation: float
    """|W'W - I|_F."""
    change: float
    """Relative decrease of the objective in the last step."""
    iterations: int


def solve(
    xx: Float64[Tensor, "left left"],
    xy: Map,
    yy: Float64[Tensor, "right right"],
    limit: float,
    iterations: int,
    tolerance: float = 1e-12,
) -> NearOrthogonal:
    """The best map from second moments.

    Cost: left right min(left, right) for each iteration.
    """
    u, _, v = torch.linalg.svd(xy, full_matrices=False)
    weights = u @ v
    size = float(torch.linalg.eigvalsh(xx)[-1]) if len(xx) else 0.0
    now, change, done = value(xx, xy, yy, weights), math.inf, 0
    while size > 0 and done < iterations and change > tolerance:
        weights = project(weights - (xx @ weights - xy) / size, limit)
        before, now, done = now, value(xx, xy, yy, weights), done + 1
        change = (before - now) / before if before > 0 else 0.0
    return NearOrthogonal(weights, deviation(weights), change if math.isfinite(change) else 0.0, done)


def deviation(weights: Map) -> float:
    """|W'W - I|_F of the narrower side."""
    return float((torch.linalg.svdvals(weights).square() - 1).square().sum().sqrt())


def project(weights: Map, limit: float) -> Map:
    """The nearest map with a deviation of at most `limit`: singular values s move to t with (t - s) + mu t (t^2 - 1) = 0."""
    u, s, v = torch.linalg.svd(weights, full_matrices=False)
    if float((s.square() - 1).square().sum().sqrt()) <= limit:
        return weights
    if limit == 0:
        turn: Tensor = u @ v
        return turn
    moved = _moved_within(s.cpu().numpy(), limit)
    nearest: Tensor = (u * torch.from_numpy(moved).to(u)) @ v
    return nearest


def _moved_within(s: Vector, limit: float) -> Vector:
    """Singular values at the edge of the set, by their multiplier."""

    def beyond(log_mu: float) -> float:
        return float(np.linalg.norm(_moved(s, np.exp(log_mu)) ** 2 - 1)) - limit

    low, high = -20.0, 5.0
    while beyond(high) > 0:
        high += 5
    while beyond(low) < 0:
        low -= 20
    return _moved(s, np.exp(brentq(beyond, low, high, xtol=1e-13, rtol=1e-13)))


def _moved(s: Vector, mu: float) -> Vector:
    """The one positive root of mu t^3 + (1 - mu) t = s, by Newton's steps from above, where the cubic rises and is convex."""
    t = np.maximum(s, 1.0)
    for _ in range(NEWTON):
        t = t - (mu * t**3 + (1 - mu) * t - s) / (3 * mu * t**2 + 1 - mu)
    return t


def value(xx: Tensor, xy: Tensor, yy: Tensor, weights: Tensor) -> float:
    """|X W - Y|^2 over rows."""
    return float(yy.trace() - 2 * (weights * xy).sum() + (weights * (xx @ weights)).sum())

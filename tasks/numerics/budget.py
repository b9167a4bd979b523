"""One budget dealt out between layers: of each layer's ways to be stored, which, so that the sum of their losses is least.

From the cheapest ways on, the step along the lower convex hulls of costs and losses that saves most for its cost comes first; a step that
does not fit is left out, with those of its layer that stand on it. Until the first that does not fit the sum is the least for its cost
(Fox, Operations Research 14 (1966) 209). What is left of the budget goes to ways beside the hulls, which are many where the last step of a
hull is a long one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.errors import MethodError


class Ways(NamedTuple):
    """How a layer may be stored."""

    cost: npt.NDArray[np.float64]
    """[way]"""
    loss: npt.NDArray[np.float64]
    """[way], in one unit for all layers."""


def cheapest(ways: Sequence[Ways]) -> float:
    """The least that all layers together cost."""
    return float(sum(way.cost.min() for way in ways))


def dealt(ways: Sequence[Ways], budget: float) -> list[int]:
    """Which way of each layer.

    Args:
        ways: of each layer; finite.
        budget: of all costs together.

    Raises:
        MethodError: if not even the cheapest ways fit.

    Cost: a sort of all ways.
    """
    hulls = [_hull(way) for way in ways]
    spent = sum(float(way.cost[hull[0]]) for way, hull in zip(ways, hulls, strict=True))
    if spent > budget:
        raise MethodError(
            f"found a budget of {budget:g}, the cheapest ways cost {spent:g} together; raise it"
        )
    steps = sorted(
        (_worth(way, hull[k], hull[k + 1]), layer, k)
        for layer, (way, hull) in enumerate(zip(ways, hulls, strict=True))
        for k in range(len(hull) - 1)
    )
    chosen = [hull[0] for hull in hulls]
    stopped = [False] * len(ways)
    for _, layer, k in steps:
        way, hull = ways[layer], hulls[layer]
        price = float(way.cost[hull[k + 1]] - way.cost[hull[k]])
        if stopped[layer] or spent + price > budget:
            stopped[layer] = True  # a later step of this layer stands on this one
            continue
        chosen[layer], spent = hull[k + 1], spent + price
    return _spent_up(ways, chosen, budget - spent)


def _spent_up(ways: Sequence[Ways], chosen: list[int], left: float) -> list[int]:
    """What is left goes to the ways, on the hull or not, that lower the sum most, one layer after the other."""
    while True:
        steps = [
            (float(way.loss[k] - way.loss[now]), layer, k)
            for layer, (way, now) in enumerate(zip(ways, chosen, strict=True))
            for k in np.flatnonzero((way.cost <= way.cost[now] + left) & (way.loss < way.loss[now])).tolist()
        ]
        if not steps:
            return chosen
        _, layer, k = min(steps)
        left -= float(ways[layer].cost[k] - ways[layer].cost[chosen[layer]])
        chosen[layer] = k


def _worth(way: Ways, before: int, after: int) -> float:
    """Change of loss for each unit of cost: the more negative, the better."""
    return float((way.loss[after] - way.loss[before]) / (way.cost[after] - way.cost[before]))


def _hull(way: Ways) -> list[int]:
    """Ways on the lower convex hull that lose less than all cheaper ones, cheapest first."""
    hull: list[int] = []
    for here in np.lexsort((way.loss, way.cost)).tolist():
        if hull and way.loss[here] >= way.loss[hull[-1]]:
            continue
        while len(hull) > 1 and _worth(way, hull[-2], hull[-1]) >= _worth(way, hull[-2], here):
            hull.pop()
        hull.append(here)
    return hull

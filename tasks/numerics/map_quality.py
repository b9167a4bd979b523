"""How well a map of few axes shows points of many: which neighbours it keeps, and whether its distances follow those of the points.

Trustworthiness is Venna and Kaski's (ICANN 2001): 1 less the ranks, at the points, by which neighbours on the map are no neighbours.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import rankdata
from torch import Tensor

from tasks.numerics.neighbours import nearest, none_yet
from tasks.numerics.spectrum import eigen

NUMBERS = 1 << 22
"""Distances that are worked on at once."""
PAIRS = 100_000
"""Pairs of points whose distances are compared."""


class Quality(NamedTuple):
    """Of a map."""

    trustworthiness: float
    kept: float
    """Share of the points' k neighbours that are among the k on the map."""
    distances: float
    """Rank correlation of distances over pairs of points; NaN where all are equal."""


class Plane(NamedTuple):
    """The first two principal components."""

    scores: Float64[Tensor, "point 2"]
    share: float
    """Of the variance; NaN where there is none."""


def neighbours(x: Float[Tensor, "point feature"], k: int) -> tuple[Tensor, Tensor]:
    """Indices and distances of the k nearest others of each point, exactly."""
    index = torch.arange(len(x), device=x.device)
    found = nearest(none_yet(len(x), k, x.device), x, index, x, index)
    return found.index, found.distance


def judge(
    x: Float64[Tensor, "point feature"],
    near: Int64[Tensor, "point neighbour"],
    on_map: Float[Tensor, "point axis"],
    seed: int,
) -> Quality:
    """What a map keeps of points.

    Args:
        x: points; a common offset costs digits, so it should have been taken off.
        near: the neighbours of each, fewer than half of the points.
        on_map: where the map has them.
        seed: of the pairs.

    Cost: 2 point^2 (feature + neighbour) flops.
    """
    n, k = near.shape
    shown, _ = neighbours(on_map, k)
    beyond = _ranks(x, shown.to(x.device)).sub_(k).clamp_(min=0).sum()
    kept = (near[:, :, None] == shown.to(near.device)[:, None, :]).any(2)
    return Quality(
        1 - 2 * float(beyond) / (n * k * (2 * n - 3 * k - 1)),
        float(kept.double().mean()),
        _correlation(x, on_map, seed),
    )


def by_chance(n: int, k: int) -> tuple[float, float]:
    """Expected trustworthiness and share of kept neighbours of a map that puts n points at random places."""
    return 1 - (n - 1 - k) * (n - k) / ((n - 1) * (2 * n - 3 * k - 1)), k / (n - 1)


def plane(x: Float64[Tensor, "point feature"]) -> Plane:
    """Centred points on their first two principal components, the largest entry of each direction positive.

    Cost: point feature min(point, feature) + min(point, feature)^3.
    """
    wide = x.shape[1] > len(x)
    found = eigen(x @ x.T if wide else x.T @ x)
    axes = found.vectors[:2]
    total = float(found.values.clamp(min=0).sum())
    scores = axes.T * found.values[:2].clamp(min=0).sqrt() if wide else x @ axes.T
    share = float(found.values[:2].clamp(min=0).sum()) / total if total > 0 else float("nan")
    return Plane(torch.nn.functional.pad(scores, (0, 2 - scores.shape[1])), share)


def _ranks(x: Tensor, other: Int64[Tensor, "point neighbour"]) -> Int64[Tensor, "point neighbour"]:
    """1 + how many points are nearer than each of some others."""
    square, ranks = x.square().sum(1), torch.empty_like(other)
    step = max(1, NUMBERS // len(x))
    for low in range(0, len(x), step):
        some = slice(low, low + step)
        distance = torch.addmm(square[None, :].expand(len(x[some]), -1), x[some], x.T, alpha=-2)
        distance[:, low : low + step].fill_diagonal_(torch.inf)
        reach = distance.gather(1, other[some])
        for j in range(other.shape[1]):
            ranks[some, j] = 1 + (distance < reach[:, j : j + 1]).sum(1)
    return ranks


def _correlation(x: Tensor, on_map: Tensor, seed: int) -> float:
    """Spearman's, over pairs of different points."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 2])))
    first = torch.from_numpy(generator.integers(len(x), size=PAIRS))
    second = (first + torch.from_numpy(generator.integers(1, len(x), size=PAIRS))) % len(x)
    ranks = [rankdata(_lengths(values.cpu(), first, second)) for values in (x, on_map)]
    if min(rank.std() for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _lengths(x: Tensor, first: Tensor, second: Tensor) -> np.ndarray:
    """Of the differences, a few at a time."""
    step = max(1, NUMBERS // x.shape[1])
    pairs = zip(torch.split(first, step), torch.split(second, step), strict=True)
    return torch.cat([(x[a].double() - x[b].double()).norm(dim=1) for a, b in pairs]).numpy()

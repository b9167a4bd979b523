"""K medoids: the rows that stand for all others at the least sum of dissimilarities, from a matrix of these, and how apart clusters lie.

Starts are BUILD's of PAM (Kaufman, Rousseeuw, Finding Groups in Data (1990)): each further medoid is the row that lowers the sum most.
Then the best of all exchanges of a medoid for another row is made until none lowers the sum; the changes of all of them are had
together from each row's nearest and second nearest medoid (Schubert, Rousseeuw, Information Systems 101 (2021) 101804: FastPAM1).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import one_hot

Dissimilarity = Float64[Tensor, "row row"]
TILE = 512
"""Rows that are tried as medoids at once."""
GAIN = 1e-12
"""Of the sum: exchanges that lower it by less do so by rounding."""


class Medoids(NamedTuple):
    """Rows that stand for clusters. No exchange of one for another row lowers the sum."""

    medoid: Int64[Tensor, " cluster"]
    """With most rows first, then by row."""
    cluster: Int64[Tensor, " row"]
    """Of the nearest medoid."""
    cost: float
    """Sum over rows of the dissimilarity to their medoid."""


def built(d: Dissimilarity, most: int) -> Int64[Tensor, " medoid"]:
    """Medoids to start from, each the best to add to those before it; fewer than `most` where so few have all rows at zero.

    Args:
        d: symmetric, zero on the diagonal.
        most: how many.

    Cost: medoid row^2.
    """
    chosen = [int(d.sum(1).argmin())] if len(d) else []
    near = d[chosen].sum(0)
    while len(chosen) < most and bool((near > 0).any()):
        gains = [(near - tile).clamp_(min=0).sum(1) for tile in torch.split(d, TILE)]
        chosen.append(int(torch.cat(gains).argmax()))
        near = torch.minimum(near, d[chosen[-1]])
    return torch.tensor(chosen, dtype=torch.int64, device=d.device)


def improved(d: Dissimilarity, start: Int64[Tensor, " cluster"]) -> Medoids:
    """Medoids after all exchanges that lower the sum, the best first.

    Cost: (5 + 2 cluster) row^2 for each exchange.
    """
    medoid = start.clone()
    while True:
        change = changes(d, medoid)
        best = int(change.argmin())
        if float(change.flatten()[best]) >= -GAIN * float(d[medoid].amin(0).sum()):
            return _numbered(d, medoid)
        medoid[best // len(d)] = best % len(d)


def changes(d: Dissimilarity, medoid: Int64[Tensor, " cluster"]) -> Float64[Tensor, "cluster row"]:
    """By how much the sum changes when a medoid is exchanged for a row."""
    near = d[medoid].topk(min(2, len(medoid)), dim=0, largest=False)
    first, own = near.values[0], one_hot(near.indices[0], len(medoid)).to(d).T
    second = near.values[1] if len(medoid) > 1 else torch.full_like(first, torch.inf)
    found = []
    for tile in torch.split(d, TILE):
        nearer = (tile - first).clamp_(max=0)
        left = torch.minimum(tile, second) - first - nearer  # of rows that lose their medoid
        found.append(nearer.sum(1) + own @ left.T)
    return torch.cat(found, dim=1)


def silhouette(d: Dissimilarity, cluster: Int64[Tensor, " row"]) -> float:
    """Mean over rows of (b - a) / max(a, b): a is the mean dissimilarity to the row's own cluster, b to the nearest other (Rousseeuw 1987).

    0 for rows alone in their cluster. Needs two clusters. Cost: 2 cluster row^2 flops.
    """
    member = one_hot(cluster).to(d)
    size, sums = member.sum(0), d @ member
    alone, own = size[cluster] == 1, cluster[:, None]
    a = sums.gather(1, own)[:, 0] / (size[cluster] - 1).where(~alone, 1.0)
    b = (sums / size).scatter(1, own, torch.inf).amin(1)
    most = torch.maximum(a, b)
    return float(((b - a) / most.where(most > 0, 1.0)).where(~alone, 0.0).mean())


def _numbered(d: Dissimilarity, medoid: Int64[Tensor, " cluster"]) -> Medoids:
    medoid = medoid.sort().values
    size = torch.bincount(d[medoid].argmin(0), minlength=len(medoid))
    medoid = medoid[torch.argsort(-size, stable=True)]
    least, cluster = d[medoid].min(0)
    return Medoids(medoid, cluster, float(least.sum()))

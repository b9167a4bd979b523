"""Dimensions of K subspaces that nobody has told: of each cluster by where its eigenvalues stand out of white noise, begun from several.

A cluster whose eigenvalues vanish beyond the first half has as many dimensions as there are others; else those count that are above the
largest which white noise of the median eigenvalue's strength would show (`white_noise`). Rows and subspaces are then fitted to each other
with these dimensions, which are taken anew until no row moves. What comes of it depends on the dimension that starts had: several are
tried, and the Bayesian information criterion of the Gaussians that the clusters imply chooses.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tasks.numerics import k_subspaces, subspace_starts, white_noise
from tasks.numerics.k_subspaces import Rows, Subspaces

TRIED = (1, 2, 4, 8, 16, 32)
"""Dimensions of starts."""
ROUNDS = 20
"""Of taking dimensions anew, at most."""
CONFIDENCE = 0.99
FEW = 10
"""Rows or features with fewer have no law of noise."""


class Chosen(NamedTuple):
    """Subspaces of different dimensions."""

    subspaces: Subspaces
    held: Int64[Tensor, " cluster"]
    """Dimension of each."""
    score: float
    """Bayesian information criterion: the smaller, the better."""


def begun(
    x: Rows, clusters: int, most: int, affine: bool, starts: int, ensemble: bool, rng: torch.Generator
) -> Chosen:
    """The best start on a sample; as `subspace_starts.begun`.

    Args:
        x: rows of a sample.
        clusters: subspaces.
        most: dimensions of any.
        affine: whether they need not hold the origin.
        starts: draws for each dimension that is tried.
        ensemble: whether they are an ensemble.
        rng: of the draws.
    """
    tried = [d for d in TRIED if d <= min(most, x.shape[1] - 1) and clusters * (d + 1) <= len(x)]
    found = []
    for d in tried:
        for start in subspace_starts.begun(x, clusters, d, affine, starts, ensemble, rng):
            found.append(_settled(x, start.subspaces, most, affine))
    return min(found, key=lambda one: one.score)


def held_by(
    values: Float64[Tensor, "cluster feature"], rows: Int64[Tensor, " cluster"], most: int
) -> Int64[Tensor, " cluster"]:
    """The dimension of each cluster, 1 at least.

    Args:
        values: variances along principal directions, falling.
        rows: of each cluster; one less where their mean was taken out.
        most: dimensions of any.
    """
    found = [_signal(v, n) for v, n in zip(values, rows.tolist(), strict=True)]
    return torch.tensor(found, device=values.device).clamp(1, most)


def _signal(values: Tensor, rows: int) -> int:
    there = min(len(values), rows)
    if there < 1 or float(values[0]) <= 0:
        return 0
    lived = int((values[:there] > 64 * len(values) * torch.finfo(torch.float64).eps * values[0]).sum())
    if lived <= there // 2:
        return lived
    values = values[:lived] if lived < there else values  # a layer norm takes a direction away
    if min(len(values), rows) < FEW:
        return lived - 1
    edge = white_noise.level(values, rows) * white_noise.largest(len(values), rows, CONFIDENCE)
    return min(int((values > edge).sum()), there // 2)


def _settled(x: Rows, found: Subspaces, most: int, affine: bool) -> Chosen:
    least, label = k_subspaces.nearest(x, found)
    for _ in range(ROUNDS):
        values, size = _variances(x, label, len(found.mean), affine)
        held = held_by(values, size - int(affine), most)
        fit = subspace_starts.refitted(x, label, least, found, held, affine, exact=True)
        run = subspace_starts.improved(x, fit, held, affine)
        found, before, label = run.subspaces, label, run.label
        if torch.equal(label, before):
            break
        least, _ = k_subspaces.nearest(x, found)
    values, size = _variances(x, label, len(found.mean), affine)
    return Chosen(found, held, criterion(values, size, held, affine))


def _variances(
    x: Rows, label: Tensor, clusters: int, affine: bool
) -> tuple[Float64[Tensor, "cluster feature"], Int64[Tensor, " cluster"]]:
    values, size = x.new_zeros(clusters, x.shape[1]), torch.bincount(label, minlength=clusters)
    for k in torch.nonzero(size).flatten().tolist():
        z = x[label == k]
        found = torch.linalg.svdvals(z - z.mean(0) if affine else z).square()
        values[k, : len(found)] = found / len(z)
    return values, size


def criterion(
    values: Float64[Tensor, "cluster feature"],
    size: Int64[Tensor, " cluster"],
    held: Int64[Tensor, " cluster"],
    affine: bool,
) -> float:
    """-2 log likelihood + parameters log rows of clusters that are Gaussian, equally wide in all directions that a subspace does not hold.

    Rows count for the cluster that they are in. Variances are taken as 1e-20 of the mean one at least.
    """
    n, width = int(size.sum()), values.shape[1]
    floor = max(1e-20 * float((values.sum(1) @ size.double()) / (n * width)), torch.finfo(torch.float64).tiny)
    total = 0.0
    for v, m, d in zip(values, size.tolist(), held.tolist(), strict=True):
        if m:
            rest = max(float(v[d:].mean()), floor)
            logs = float(v[:d].clamp(min=floor).log().sum()) + (width - d) * math.log(rest)
            free = d * width - d * (d - 1) / 2 + 1 + (width if affine else 0) + 1
            total += m * logs - 2 * m * math.log(m / n) + free * math.log(n)
    return total

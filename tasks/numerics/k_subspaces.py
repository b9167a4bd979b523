"""K subspaces, linear or affine, each row belonging to the nearest: squared distances, fits from moments, and starts on a sample.

Rows are given to the subspace of least residual and subspaces are refitted to their rows' leading principal directions in turn; neither
step raises the sum of squared residuals (Bradley, Mangasarian, Journal of Global Optimization 16 (2000) 23; Tseng, Journal of
Optimization Theory and Applications 105 (2000) 249). Starts are drawn as k-means++ draws them, from residuals: a row, with the subspace
of the rows that point most nearly its way, then rows with chances that grow with their distance to what is there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tasks.numerics import moments
from tasks.numerics.symmetric import full

Rows = Float64[Tensor, "row feature"]


class Subspaces(NamedTuple):
    """Directions beyond a subspace's dimension are zeros."""

    mean: Float64[Tensor, "cluster feature"]
    """A point of each; zeros where they are linear."""
    basis: Float64[Tensor, "cluster direction feature"]
    """Orthonormal."""


class Fit(NamedTuple):
    """Subspaces of rows that were given to clusters."""

    subspaces: Subspaces
    eigenvalue: Float64[Tensor, "cluster feature"]
    """Of each cluster's covariance about its point (its rows' mean, or the origin), divided by rows, falling."""
    cost: float
    """Sum of squared residuals."""


def scaled(x: Float[Tensor, "row feature"], unit_length: bool) -> Rows:
    """In float64, of length 1 where that is asked; rows of zeros stay.

    Raises:
        MethodError: for rows that are not finite.
    """
    if not bool(x.isfinite().all()):
        moments.refuse_not_finite(x)
    x = x.double()
    if not unit_length:
        return x
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = x / length.where(length > 0, 1.0)
    return unit


def residuals(x: Float[Tensor, "row feature"], found: Subspaces) -> Float64[Tensor, "row cluster"]:
    """Squared distances of rows to subspaces, in float64. Cost: 2 row cluster (direction + 1) feature flops."""
    clusters, directions, features = found.basis.shape
    centre = found.mean.mean(0)
    z, point = x.double() - centre, found.mean - centre
    along = z @ found.basis.view(-1, features).T - torch.einsum("kdf,kf->kd", found.basis, point).flatten()
    inside = along.view(len(z), clusters, directions).square_().sum(2)
    square = z.square().sum(1, keepdim=True) - 2 * z @ point.T + point.square().sum(1)
    return (square - inside).clamp_(min=0)


def fitted(states: Sequence[moments.State], dimension: int, affine: bool) -> Fit:
    """The leading directions of each cluster from the moments of its rows; zeros for one without rows.

    Cost: O(cluster feature^3).
    """
    centre = states[0]["c"]
    width = len(centre)
    mean = centre.new_zeros(len(states), width)
    basis = mean.new_zeros(len(states), dimension, width)
    values, cost = torch.zeros_like(mean), 0.0
    for k, state in enumerate(states):
        if not int(state["n"]):
            continue
        if affine:
            mean[k] = moments.mean(state)
        ascending, columns = torch.linalg.eigh(full(moments.move(state, mean[k])["g"]))
        values[k] = ascending.flip(0).clamp(min=0)
        basis[k] = columns.flip(1)[:, :dimension].T
        cost += float(values[k, dimension:].sum())
        values[k] /= float(state["w"])
    return Fit(Subspaces(mean, basis), values, cost)


def started(
    x: Rows, clusters: int, dimension: int, affine: bool, starts: int, rounds: int, rng: torch.Generator
) -> Subspaces:
    """The best of several starts on a sample, each improved until no row moves, along the directions in which so many subspaces can lie.

    Args:
        x: rows of a sample, more than (dimension + 1) each cluster would take.
        clusters: subspaces.
        dimension: of each.
        affine: whether they need not hold the origin.
        starts: draws.
        rounds: most improvements of a draw.
        rng: of the draws.
    """
    centre = x.mean(0) if affine else torch.zeros_like(x[0])
    few = torch.linalg.svd(x - centre, full_matrices=False).Vh[: clusters * (dimension + 1)]
    x, best, least = (x - centre) @ few.T, None, torch.inf
    for _ in range(starts):
        found, cost = _improved(x, _drawn(x, clusters, dimension, affine, rng), dimension, affine, rounds)
        if best is None or cost < least:
            best, least = found, cost
    assert best is not None
    mean = best.mean @ few + centre if affine else best.mean @ few
    return Subspaces(mean, best.basis @ few)


def repaired(
    found: Subspaces, empty: Int64[Tensor, " lost"], far: Float64[Tensor, "place feature"], affine: bool
) -> Subspaces:
    """Subspaces with those that lost all their rows put through the rows that are furthest from all, one row each."""
    mean, basis = found.mean.clone(), found.basis.clone()
    for k, row in zip(empty.tolist(), far, strict=False):
        basis[k] = 0
        if affine:
            mean[k] = row
        elif float(row.norm()) > 0:
            basis[k, 0] = row / row.norm()
    return Subspaces(mean, basis)


def _drawn(x: Rows, clusters: int, dimension: int, affine: bool, rng: torch.Generator) -> Subspaces:
    """Each through a drawn row and those nearest to its direction, or to itself where subspaces are affine."""
    chance = torch.ones(len(x), dtype=torch.float64)
    near: Tensor | None = None
    parts = []
    for _ in range(clusters):
        weight = chance if float(chance.sum()) > 0 else torch.ones_like(chance)
        seed = x[int(torch.multinomial(weight, 1, generator=rng))]
        parts.append(_through(x, seed, dimension, affine))
        left = residuals(x, parts[-1])[:, 0]
        near = left if near is None else torch.minimum(near, left)
        chance = near
    return Subspaces(torch.cat([p.mean for p in parts]), torch.cat([p.basis for p in parts]))


def _through(x: Rows, seed: Float64[Tensor, " feature"], dimension: int, affine: bool) -> Subspaces:
    """The subspace of the rows nearest to a seed."""
    if affine:
        order = torch.argsort((x - seed).square().sum(1), stable=True)
    else:
        length = x.norm(dim=1)
        order = torch.argsort(-(x @ seed).abs() / length.where(length > 0, torch.inf), stable=True)
    return _of_rows(x[order[: dimension + 1]], dimension, affine)


def _of_rows(x: Rows, dimension: int, affine: bool) -> Subspaces:
    mean = x.mean(0) if affine else torch.zeros_like(x[0])
    found = torch.linalg.svd(x - mean, full_matrices=False).Vh[:dimension]
    basis = x.new_zeros(1, dimension, x.shape[1])
    basis[0, : len(found)] = found
    return Subspaces(mean[None], basis)


def _improved(
    x: Rows, found: Subspaces, dimension: int, affine: bool, rounds: int
) -> tuple[Subspaces, float]:
    """Subspaces after rows and subspaces have been fitted to each other in turn, and the sum of squared residuals."""
    before: Tensor | None = None
    for _ in range(rounds):
        least, label = residuals(x, found).min(1)
        if before is not None and torch.equal(label, before):
            break
        states = [moments.partial(x[label == k]) for k in range(len(found.mean))]
        empty = torch.tensor([k for k, s in enumerate(states) if not int(s["n"])], dtype=torch.int64)
        far = x[torch.argsort(-least, stable=True)[: len(empty)]]
        found, before = repaired(fitted(states, dimension, affine).subspaces, empty, far, affine), label
    return found, float(residuals(x, found).amin(1).sum())

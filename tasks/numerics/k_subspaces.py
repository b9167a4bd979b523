"""K subspaces, linear or affine, each row belonging to the nearest: squared distances, and fits from moments.

Rows are given to the subspace of least residual and subspaces are refitted to their rows' leading principal directions in turn; neither
step raises the sum of squared residuals (Bradley, Mangasarian, Journal of Global Optimization 16 (2000) 23; Tseng, Journal of
Optimization Theory and Applications 105 (2000) 249).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from tasks.numerics import cluster_moments, moments
from tasks.numerics.cluster_moments import Points, State

TILE = 1024
"""Rows of one product: what is made of them stays in the cache."""
ROUNDING = 1e-12
"""Distances below this share of what they are differences of."""
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


def require_finite(x: Float[Tensor, "row feature"]) -> None:
    """Refuse rows that are not.

    Raises:
        MethodError: with the first.
    """
    if not bool(x.isfinite().all()):
        moments.refuse_not_finite(x)


def scaled(x: Float[Tensor, "row feature"], unit_length: bool) -> Float[Tensor, "row feature"]:
    """As they are, or in float64 and of length 1 where that is asked; rows of zeros stay."""
    if not unit_length:
        return x
    x = x.double()
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    unit: Tensor = x / length.where(length > 0, 1.0)
    return unit


class Split(NamedTuple):
    """Squares of what rows are about each subspace's point."""

    whole: Float64[Tensor, "row cluster"]
    """Of their distances to it."""
    along: Float64[Tensor, "row direction cluster"]
    """Of their parts along directions."""


def split(
    x: Float[Tensor, "row feature"], found: Subspaces, room: Float64[Tensor, "place feature"] | None = None
) -> Split:
    """Squares of whole rows and of their parts along directions, in float64.

    Args:
        x: finite rows.
        found: the subspaces.
        room: memory for at least as many rows, where it is called often: fresh memory takes longer than the products.

    Cost: 2 row cluster (direction + 1) feature flops.
    """
    clusters, directions, features = found.basis.shape
    centre = found.mean.mean(0)
    z = torch.empty_like(x, dtype=torch.float64) if room is None else room[: len(x)]
    z.copy_(x).sub_(centre)
    point = found.mean - centre
    columns = found.basis.transpose(0, 1).reshape(
        -1, features
    )  # clusters innermost, as sums are over directions
    along = z @ columns.T - torch.einsum("kdf,kf->dk", found.basis, point).flatten()
    square = torch.linalg.vector_norm(z, dim=1, keepdim=True).square_() - 2 * z @ point.T
    return Split(square.add_(point.square().sum(1)), along.view(len(z), directions, clusters).square_())


def residuals(
    x: Float[Tensor, "row feature"], found: Subspaces, room: Float64[Tensor, "place feature"] | None = None
) -> Float64[Tensor, "row cluster"]:
    """Squared distances of rows to subspaces, in float64; arguments and cost are those of `split`."""
    whole, along = split(x, found, room)
    left: Tensor = whole.sub_(along.sum(1)).clamp_(min=0)
    return left


def distances(x: Float[Tensor, "row feature"], found: Subspaces) -> Float64[Tensor, "row cluster"]:
    """Distances of rows to subspaces from the differences themselves, whose digits squares lose; below 1e-12 of row and point together
    they are rounding, and 0, so that a row which lies in several subspaces is as near to each.

    Cost: 4 row cluster direction feature flops.
    """
    x, columns = x.double(), []
    length = torch.linalg.vector_norm(x, dim=1)
    for mean, basis in zip(*found, strict=True):
        left = x - mean
        left -= (left @ basis.T) @ basis
        apart = torch.linalg.vector_norm(left, dim=1)
        columns.append(apart.where(apart > ROUNDING * (length + torch.linalg.vector_norm(mean)), 0.0))
    return torch.stack(columns, dim=1)


class Held(NamedTuple):
    """Rows in the subspace that is nearest to each."""

    part: Int64[Tensor, " row"]
    """Its number, the first of equals."""
    coordinates: Float64[Tensor, "row direction"]
    """Along its basis, from its point."""
    distance: Float64[Tensor, " row"]
    """As `distances` has it."""


def held(x: Float[Tensor, "row feature"], found: Subspaces) -> Held:
    """Rows in their nearest subspaces.

    Cost: 4 row cluster direction feature flops, memory for the coordinates in one subspace besides.
    """
    x = x.double()
    length, least = torch.linalg.vector_norm(x, dim=1), x.new_full((len(x),), torch.inf)
    part, coordinates = torch.zeros_like(least, dtype=torch.int64), x.new_zeros(len(x), found.basis.shape[1])
    for number, (mean, basis) in enumerate(zip(*found, strict=True)):
        left = x - mean
        along = left @ basis.T
        left -= along @ basis
        apart = torch.linalg.vector_norm(left, dim=1)
        apart = apart.where(apart > ROUNDING * (length + torch.linalg.vector_norm(mean)), 0.0)
        nearer = apart < least
        least, part = apart.where(nearer, least), part.masked_fill(nearer, number)
        coordinates = along.where(nearer[:, None], coordinates)
    return Held(part, coordinates, least)


def nearest(
    x: Float[Tensor, "row feature"], found: Subspaces
) -> tuple[Float64[Tensor, " row"], Int64[Tensor, " row"]]:
    """The least of the squared distances of each row, and whose it is; any number of rows at the memory of a few."""
    room = torch.empty((min(TILE, len(x)), x.shape[1]), dtype=torch.float64, device=x.device)
    parts = [residuals(rows, found, room).min(1) for rows in torch.split(x, TILE)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def fitted(state: State, point: Points, held: Int64[Tensor, " cluster"], affine: bool) -> Fit:
    """The leading directions of each cluster from the moments of its rows; zeros beyond those that they fill.

    Args:
        state: of `cluster_moments`.
        point: that it is about; the origin where subspaces are linear.
        held: dimension of each subspace.
        affine: whether subspaces need not hold the origin.

    Cost: O(cluster feature^3).
    """
    n, most = state["n"], int(held.max())
    mean = (point + state["s"] / n.clamp(min=1)[:, None]) if affine else torch.zeros_like(point)
    basis = mean.new_zeros(len(n), most, mean.shape[1])
    values, cost = torch.zeros_like(mean), 0.0
    for k in torch.nonzero(n).flatten().tolist():
        values[k], directions = principal(cluster_moments.scatter(state, k, affine))
        basis[k, : held[k]] = directions[: held[k]] * filled(values[k])[: held[k], None]
        cost += float(values[k, held[k] :].sum())
        values[k] /= n[k]
    return Fit(Subspaces(mean * (n > 0)[:, None], basis), values, cost)


def principal(
    products: Float64[Tensor, "feature feature"],
) -> tuple[Float64[Tensor, " feature"], Float64[Tensor, "feature feature"]]:
    """Eigenvalues, falling and none negative, and directions, one a row."""
    ascending, columns = torch.linalg.eigh(products)
    return ascending.flip(0).clamp(min=0), columns.mT.flip(0)


def filled(values: Float64[Tensor, " order"]) -> Bool[Tensor, " order"]:
    """Which of falling eigenvalues are more than rounding: along the other directions rows do not go, and any would do as well."""
    return values > len(values) * torch.finfo(values.dtype).eps * values[:1]


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


def affinity(
    basis: Float64[Tensor, "cluster direction feature"],
) -> Float64[Tensor, "cluster other_cluster"]:
    """|U_k' U_l|_F over the root of the smaller number of directions; 0 beside a subspace without any."""
    held = basis.square().sum((1, 2))
    cosines = torch.einsum("kif,ljf->klij", basis, basis).square().sum((2, 3))
    least = torch.minimum(held[:, None], held[None, :])
    shares: Tensor = (cosines / least.where(least > 0, 1.0)).sqrt()
    return shares

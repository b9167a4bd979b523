"""Principal components of few wide rows, by the products of rows: nothing of size feature x feature is formed."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tasks.numerics.spectrum import eigen, signed

CHUNK = 1 << 23
"""Values that are taken to float64 at a time: 64 MB."""


class Components(NamedTuple):
    """Singular triples of (centred) rows."""

    variances: Float64[Tensor, " component"]
    """Squared singular values, falling: the sum over rows of squared projections; none below the rounding floor."""
    scores: Float64[Tensor, "row component"]
    """Left singular vectors."""
    total: float
    """Sum of all squared values of the (centred) rows."""
    residual: float
    """Largest |K u - s u| over the largest s."""


def gram(rows: Float[Tensor, "row feature"], center: bool) -> Float64[Tensor, "row row"]:
    """Products of (centred) rows in float64.

    Args:
        rows: floating.
        center: subtract the mean row.

    Cost: row^2 feature flops; 64 MB beside the rows.
    """
    out = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, max(1, CHUNK // max(1, len(rows))), dim=1):
        exact = part.double()
        if center and len(rows):
            exact = exact - exact.mean(0)
        out += exact @ exact.T
    return out


def components(rows: Float[Tensor, "row feature"], center: bool) -> Components:
    """Principal components by their scores.

    Args:
        rows: floating; at least one.
        center: subtract the mean row.

    Cost: row^2 feature + row^3.
    """
    products = gram(rows, center)
    found = eigen(products)
    total = float(products.diagonal().sum())
    floor = len(rows) * torch.finfo(torch.float64).eps * max(float(found.values[0]), 0.0)
    rank = int((found.values > floor).sum()) if total > 0 else 0
    residual = found.residual if math.isfinite(found.residual) else 0.0
    return Components(found.values[:rank], found.vectors[:rank].T, total, residual)


def participation(rows: Float[Tensor, "row feature"], center: bool) -> float | None:
    """(sum of eigenvalues)^2 / sum of their squares of (centred) rows; None where all are equal."""
    products = gram(rows, center)
    trace = float(products.diagonal().sum())
    return trace**2 / float(products.square().sum()) if trace > 0 else None


def directions(
    rows: Float[Tensor, "row feature"], found: Components, k: int, center: bool
) -> Float64[Tensor, "component feature"]:
    """The first k principal directions, orthonormal rows, the largest entry of each positive.

    Cost: row feature k flops, and k rows in float64.
    """
    k = min(k, len(found.variances))
    scores = found.scores[:, :k]
    if center:
        scores = scores - scores.mean(0)
    parts = [
        scores.T @ part.double() for part in torch.split(rows, max(1, CHUNK // max(1, len(rows))), dim=1)
    ]
    basis = torch.cat(parts, dim=1)
    for _ in range(2):  # the products of rows lose half of the digits of small components
        basis = torch.linalg.qr(basis.T).Q.T
    return signed(basis)

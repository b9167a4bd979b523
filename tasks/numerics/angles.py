"""Angles between subspaces, small ones included, and the distances made of them.

A basis is a matrix of orthonormal rows (component, feature). Large angles come from cosines and small ones
from sines, as arccos loses every angle below 1e-8 (Bjorck, Golub 1973; Knyazev, Argentati 2002). No projector
is ever formed.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from schemas.errors import MethodError

Basis = Float[Tensor, "component feature"]
Angles = Float64[Tensor, " angle"]

ORTHONORMAL_LIMIT = 1e-5
"""Largest deviation of B B^T from the identity that is taken for rounding (float32 bases have about 1e-6)."""


class Distances(NamedTuple):
    """Distances between two subspaces of k1 and k2 dimensions in d, from their min(k1, k2) angles."""

    geodesic: float
    """sqrt(sum theta^2), in radians."""
    chordal: float
    """sqrt(sum sin^2 theta)."""
    projection: float
    """Sine of the largest angle."""
    binet_cauchy: float
    """sqrt(1 - prod cos^2 theta)."""
    schubert: float
    """Geodesic distance that counts a right angle for every dimension by which they differ (Ye, Lim 2016)."""
    overlap: float
    """Mean of cos^2 theta: 1 if one contains the other."""
    overlap_null: float
    """Expected overlap with a random subspace: max(k1, k2) / d."""


def orthonormal(rows: Basis) -> Float64[Tensor, "component feature"]:
    """An orthonormal basis of the space of some independent rows, in float64.

    Raises:
        MethodError: if the rows are dependent, or more than there are features.
    """
    if rows.shape[0] > rows.shape[1]:
        raise MethodError(f"{rows.shape[0]} rows of {rows.shape[1]} features are dependent; keep fewer")
    columns, triangle = torch.linalg.qr(rows.double().T)
    size = triangle.diagonal().abs()
    if bool((size <= 1e-12 * torch.linalg.vector_norm(rows.double(), dim=1)).any()):
        raise MethodError(f"the {len(rows)} rows are linearly dependent; remove repeated directions")
    basis: Tensor = columns.T.contiguous()
    return basis


def principal_angles(a: Basis, b: Float[Tensor, "other feature"]) -> Angles:
    """The min(k1, k2) principal angles in radians, ascending, each to about 1e-16 absolute.

    Raises:
        MethodError: if a basis is not orthonormal, or the widths differ.

    Cost: O(feature k1 k2) and, only where an angle is below 45 degrees, one more QR of the smaller basis.
    """
    a, b = _checked(a), _checked(b)
    if a.shape[1] != b.shape[1]:
        raise MethodError(
            f"subspaces of {a.shape[1]} and {b.shape[1]} features have no angles; compare sites of one width"
        )
    if len(a) < len(b):
        a, b = b, a
    cross = b @ a.T
    cosine = torch.linalg.svdvals(cross).clamp(max=1.0)
    if len(cosine) == 0 or float(cosine[0]) ** 2 < 0.5:
        return torch.arccos(cosine)
    residual = torch.linalg.qr((b - cross @ a).T, mode="r")[1]
    sine = torch.linalg.svdvals(residual).flip(0).clamp(max=1.0)
    return torch.where(cosine.square() < 0.5, torch.arccos(cosine), torch.arcsin(sine))


def distances(a: Basis, b: Float[Tensor, "other feature"]) -> Distances:
    """All distances from one set of angles.

    Raises:
        MethodError: as `principal_angles`.
    """
    theta = principal_angles(a, b)
    larger, apart = max(len(a), len(b)), abs(len(a) - len(b))
    sine, cosine = theta.sin(), theta.cos()
    return Distances(
        geodesic=float(torch.linalg.vector_norm(theta)),
        chordal=float(torch.linalg.vector_norm(sine)),
        projection=float(sine.max()) if len(theta) else 0.0,
        binet_cauchy=math.sqrt(max(0.0, -math.expm1(float(torch.log1p(-sine.square()).sum())))),
        schubert=math.sqrt(float(theta.square().sum()) + apart * (math.pi / 2) ** 2),
        overlap=float(cosine.square().mean()) if len(theta) else math.nan,
        overlap_null=larger / a.shape[1],
    )


def _checked(basis: Tensor) -> Tensor:
    """The basis in float64."""
    exact = basis.double()
    deviation = exact @ exact.T
    deviation.diagonal().sub_(1.0)
    worst = float(deviation.abs().max()) if len(exact) else 0.0
    if not worst <= ORTHONORMAL_LIMIT:
        raise MethodError(
            f"rows of a basis must be orthonormal, found a deviation of {worst:.1e}; use `orthonormal` first"
        )
    return exact

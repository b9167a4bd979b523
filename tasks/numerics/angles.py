"""Angles between subspaces, small ones included, and the distances made of them.

A basis is a matrix of orthonormal rows (component, feature). Large angles come from cosines and small ones
from sines, as arccos loses every angle below 1e-8 (Bjorck, Golub 1973; Knyazev, Argentati 2002). No projector
is ever formed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from schemas.errors import MethodError

Basis = Float[Tensor, "component feature"]
Angles = Float64[Tensor, " angle"]

ORTHONORMAL_LIMIT = 1e-5
"""Largest deviation of B B^T from the identity that is taken for rounding (float32 bases have about 1e-6)."""


SMALL_SINE = 1e-2
"""Angles with a smaller sine are found from sines when many pairs are compared; above, a cosine gives 12 digits of the angle."""


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
    return distances_of(principal_angles(a, b), len(a), len(b), a.shape[1])


def distances_of(theta: Angles, k1: int, k2: int, width: int) -> Distances:
    """All distances of two subspaces of k1 and k2 dimensions among `width` features, from their angles."""
    larger, apart = max(k1, k2), abs(k1 - k2)
    sine, cosine = theta.sin(), theta.cos()
    return Distances(
        geodesic=float(torch.linalg.vector_norm(theta)),
        chordal=float(torch.linalg.vector_norm(sine)),
        projection=float(sine.max()) if len(theta) else 0.0,
        binet_cauchy=math.sqrt(max(0.0, -math.expm1(float(torch.log1p(-sine.square()).sum())))),
        schubert=math.sqrt(float(theta.square().sum()) + apart * (math.pi / 2) ** 2),
        overlap=float(cosine.square().mean()) if len(theta) else math.nan,
        overlap_null=larger / width,
    )


def pairwise_angles(
    bases: Sequence[Tensor],
) -> Iterator[tuple[int, int, Angles]]:
    """The principal angles of every two of some subspaces of one width: (first, second, angles ascending).

    The same numbers as `principal_angles` to 1e-12 relative, with each basis checked once, the products of one with all later ones
    in one multiplication, and sines for the directions of small angles alone.

    Args:
        bases: [component, feature] each, of orthonormal rows; their numbers of components may differ.

    Raises:
        MethodError: if a basis is not orthonormal, or the widths differ.

    Cost: for each pair k1 k2 feature, one singular value decomposition of [k1, k2], and feature s^2 for s small angles. Memory:
    one basis beside all of them in float64.
    """
    exact = [_checked(basis) for basis in bases]
    widths = {basis.shape[1] for basis in exact}
    if len(widths) > 1:
        raise MethodError(
            f"subspaces of {sorted(widths)} features have no angles; compare sites of one width"
        )
    every = torch.cat(exact) if exact else torch.empty(0, 0, dtype=torch.float64)
    ends = torch.tensor([0, *(len(basis) for basis in exact)]).cumsum(0).tolist()
    for i, a in enumerate(exact):
        cross = a @ every[ends[i + 1] :].T
        for j in range(i + 1, len(exact)):
            start = ends[i + 1]
            yield i, j, _angles(cross[:, ends[j] - start : ends[j + 1] - start], a, exact[j])


def _angles(cross: Tensor, a: Tensor, b: Tensor) -> Angles:
    """Of two bases with their products [k1, k2]."""
    if len(a) < len(b):
        cross, a, b = cross.T, b, a
    cosine: Tensor = torch.linalg.svdvals(cross).clamp(max=1.0)
    if len(cosine) == 0 or float(1 - cosine[0]) * 2 > SMALL_SINE**2:
        return torch.arccos(cosine)
    small = int((2 * (1 - cosine) <= SMALL_SINE**2).sum())
    directions, products = b, cross.T
    if small < len(b):
        right = torch.linalg.svd(cross, full_matrices=False)[2][:small]
        directions, products = right @ b, right @ cross.T
    residual = torch.linalg.qr((directions - products @ a).T, mode="r")[1]
    sine = torch.linalg.svdvals(residual).flip(0).clamp(max=1.0)
    return torch.cat([torch.arcsin(sine), torch.arccos(cosine[small:])])


def overlap_quantile(k1: int, k2: int, width: int, probability: float) -> float:
    """The overlap below which that share of pairs of random subspaces lies.

    The Beta law with the mean and variance of the overlap: exact where one of them is a line (cos^2 of a random line is
    Beta(k / 2, (width - k) / 2)), an approximation otherwise.
    """
    smaller, larger = min(k1, k2), max(k1, k2)
    if smaller == 0:
        return math.nan
    mean, least = larger / width, max(0, k1 + k2 - width) / smaller
    if larger == width:
        return 1.0
    spread = 2 * k1 * k2 * (width - k1) * (width - k2) / (width**2 * (width - 1) * (width + 2))
    centre, variance = (mean - least) / (1 - least), spread / (smaller * (1 - least)) ** 2
    size = centre * (1 - centre) / variance - 1
    found = float(stats.beta.ppf(probability, centre * size, (1 - centre) * size))
    return least + (1 - least) * found


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

"""Coding rates: nats that a row takes when it may be off by a distortion, for all rows and for parts of them drawn at random.

Of rows with second moment S in d features the rate is 1/2 ln det(I + d / distortion^2 S) (Ma, Derksen, Hong, Wright 2007).
"""

import math

import torch
from jaxtyping import Float64
from scipy.optimize import brentq
from torch import Tensor

Values = Float64[Tensor, " component"]


def rate(second: Float64[Tensor, "feature feature"], distortion: float) -> float:
    """Of rows with this second moment about the origin.

    Cost: O(feature^3 / 3).
    """
    scaled = second * (len(second) / distortion**2)
    scaled.diagonal().add_(1)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if not int(failed):
        return float(factor.diagonal().log().sum())
    scaled.diagonal().sub_(1)
    return float(torch.log1p(torch.linalg.eigvalsh(scaled).clamp(min=0)).sum()) / 2


def rate_of_part(values: Values, rows: float, share: float, distortion: float) -> float:
    """Expected rate of a random part of the rows, whose second moment varies more than that of all: it is lower.

    A part of the rows is a random principal block of their Gram matrix. For many rows and features, block and matrix are free, so that the
    S-transform of their product is the product of theirs; integrated, with a = d / distortion^2 and eigenvalues x of all n rows,

        2 rate = sum ln(1 + u x) + n (f ln(1 + v) + ln(1 + (1 - f) v) - ln(1 + v)),   u = a / (1 + (1 - f) v),

    where v solves  1/n sum u x / (1 + u x) = f v / (1 + v).

    Args:
        values: eigenvalues of the second moment of all rows.
        rows: how many these are, not fewer than values that are not zero.
        share: f, of the rows in the part.
        distortion: root mean square error that a code may have.
    """
    a, x = len(values) / distortion**2, values.clamp(min=0)
    if float(x.max()) <= 0:
        return 0.0

    def excess(log_v: float) -> float:
        v = math.exp(log_v)
        ux = x * (a / (1 + (1 - share) * v))
        return float((ux / (1 + ux)).sum()) / rows - share * v / (1 + v)

    low, high = -60.0, 60.0
    v = math.exp(float(brentq(excess, low, high, xtol=1e-13))) if excess(high) < 0 < excess(low) else math.inf
    if not math.isfinite(v):
        return math.nan
    inside = float(torch.log1p(x * (a / (1 + (1 - share) * v))).sum())
    return (inside + rows * (share * math.log1p(v) + math.log1p((1 - share) * v) - math.log1p(v))) / 2


def rate_of_codes(z: Float64[Tensor, "row code"], distortion: float) -> Float64[Tensor, ""]:
    """`rate` of the second moment of codes, as a tensor that gradients pass. Cost: 2 row code^2 flops."""
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.logdet(eye + (z.shape[1] / (len(z) * distortion**2)) * z.T @ z) / 2


def rate_of_memberships(
    z: Float64[Tensor, "row code"], membership: Float64[Tensor, "cluster row"], distortion: float
) -> Float64[Tensor, ""]:
    """Mean rate of clusters that rows belong to in shares that add up to 1 in each, as a tensor that gradients pass.

    1 / (2 cluster) sum_k ln det(I + d / distortion^2 sum_i membership_ki z_i z_i^T) (Ding, Tong, Chan, Dai, Ma, Haeffele, arXiv 2301.01805
    (2023), with 1/2 as above): that of all rows where every share is 1 / row.

    Cost: 2 cluster row code^2 + cluster code^3 flops; 8 (row + cluster) code^2 bytes.
    """
    d = z.shape[1]
    second = (membership @ (z[:, :, None] * z[:, None, :]).flatten(1)).view(-1, d, d)
    eye = torch.eye(d, dtype=z.dtype, device=z.device)
    return torch.logdet(eye + second * (d / distortion**2)).mean() / 2

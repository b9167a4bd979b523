"""A positive semidefinite matrix C from its product with a few vectors: the best that Y = C Q says of it.

The approximation Y (Q^T Y)^+ Y^T lies below C, and is C where Q spans its range. With P the projection on C^(1/2) Q,

    0 <= C - approximation = C^(1/2) (I - P) C^(1/2) <= |(I - Q Q^T) C (I - Q Q^T)| I

and its trace is trace C minus the sum of the values found, so that each value is too small by no more than either.

Tropp, Yurtsever, Udell, Cevher, NIPS (2017), algorithm 3 (the shift); Gaussian test vectors for the error: Tropp, Yurtsever, Udell,
Cevher, SIAM Journal on Scientific Computing 41 (2019) A2430, section 6.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


def approximate(
    y: Float64[Tensor, "feature column"], q: Float64[Tensor, "feature column"]
) -> tuple[Float64[Tensor, " component"], Float64[Tensor, "component feature"]]:
    """Eigenvalues, falling, and orthonormal eigenvectors of the approximation.

    Args:
        y: the matrix times q.
        q: orthonormal columns.

    Cost: 6 feature column^2 flops.
    """
    largest = float(y.abs().max()) if y.numel() else 0.0
    if largest == 0:
        return y.new_zeros(y.shape[1]), q.T.contiguous()
    scale = 2.0 ** min(
        1000, max(-1000, -math.frexp(largest)[1])
    )  # or the square of y would be nothing, or infinite
    y = y * scale
    shift = math.sqrt(len(y)) * EPS * float(torch.linalg.vector_norm(y))
    shifted = y + shift * q
    small = q.T @ shifted
    values, turn = torch.linalg.eigh((small + small.T) / 2)
    root = turn / values.clamp(min=shift / 2).sqrt()  # where rounding left the shift alone
    basis, triangle = torch.linalg.qr(shifted)
    u, s, _ = torch.linalg.svd(triangle @ root, full_matrices=False)
    return (s.square() - shift).clamp(min=0) / scale, (basis @ u).T.contiguous()


def frobenius_error(
    test: Float64[Tensor, "feature draw"],
    product: Float64[Tensor, "feature draw"],
    values: Float64[Tensor, " component"],
    vectors: Float64[Tensor, "component feature"],
) -> float:
    """Estimate of the Frobenius norm of C minus its approximation; the square is without bias.

    Args:
        test: independent normal entries.
        product: C times test.
        values, vectors: the approximation.
    """
    left = product - vectors.T @ (values[:, None] * (vectors @ test))
    return float(torch.linalg.vector_norm(left)) / math.sqrt(test.shape[1])

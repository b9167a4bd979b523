"""A truncated singular value decomposition to which rows or columns are appended, with a bound on what was ever dropped.

[A; D] with A = U S V^T + E has the decomposition of [S 0; D V L] turned by [U 0; 0 I] and [V Q], where Q L^T is that of the part of D^T
outside V. Cutting it to `rank` drops singular values of which the largest is s and the sum of squares f^2; errors of one update after
the other add up: |A - U S V^T| <= sum s (spectral), sum f (Frobenius).

Zha, Simon, SIAM Journal on Scientific Computing 21 (1999) 782. Brand, Linear Algebra and its Applications 415 (2006) 20.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor


class Truncated(NamedTuple):
    """U S V^T near a matrix."""

    left: Float64[Tensor, "row component"]
    """Orthonormal columns."""
    singular: Float64[Tensor, " component"]
    """Falling."""
    right: Float64[Tensor, "component column"]
    """Orthonormal rows."""
    spectral: float
    """The largest singular value of the difference is no larger."""
    frobenius: float
    """Nor is its Frobenius norm than this."""


def truncated(matrix: Float64[Tensor, "row column"], rank: int) -> Truncated:
    """The best of that rank. Cost: row column min(row, column)."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    left = s[rank:]
    return Truncated(
        u[:, :rank], s[:rank], v[:rank], float(left[:1].sum()), float(torch.linalg.vector_norm(left))
    )


def append_rows(found: Truncated, rows: Float64[Tensor, "new column"], rank: int) -> Truncated:
    """The decomposition with rows below.

    Cost: (row + column)(component + new)^2 flops.
    """
    inside = rows @ found.right.T
    outside = rows - inside @ found.right
    k = len(found.singular)
    q, triangle = torch.linalg.qr(
        torch.cat([found.right, outside]).T
    )  # beside V, or rounding would leave Q at an angle
    q, triangle = q[:, k:], triangle[k:, k:]
    corner = torch.cat(
        [
            torch.cat([torch.diag(found.singular), rows.new_zeros(k, q.shape[1])], 1),
            torch.cat([inside, triangle.T], 1),
        ]
    )
    small = truncated(corner, rank)
    left = torch.cat([found.left @ small.left[:k], small.left[k:]])
    right = small.right[:, :k] @ found.right + small.right[:, k:] @ q.T
    return Truncated(
        left, small.singular, right, found.spectral + small.spectral, found.frobenius + small.frobenius
    )


def append_columns(found: Truncated, columns: Float64[Tensor, "row new"], rank: int) -> Truncated:
    """The decomposition with columns to the right; the same cost."""
    return _turned(append_rows(_turned(found), columns.T, rank))


def _turned(found: Truncated) -> Truncated:
    return Truncated(found.right.T, found.singular, found.left.T, found.spectral, found.frobenius)

"""Sines of the angles between rows, whatever their lengths and signs: s(u, v) = sqrt(1 - (u.v)^2 / (|u|^2 |v|^2)).

It is the distance of u / |u| from the line through v, and so what is lost of u when v stands for it (Daniel, Casenave, Akkari, Ryckelynck,
arXiv 2108.12291 (2021): partitions that are optimal in terms of normalised Kolmogorov widths).
"""

from jaxtyping import Float64
from torch import Tensor

SAME = 1e-7
"""Sines below it are rounding errors of 1 - cos^2, and count as 0: such rows have one direction."""


def pairwise(unit: Float64[Tensor, "row feature"]) -> Float64[Tensor, "row row"]:
    """Of rows of length 1; symmetric, zeros on the diagonal.

    Cost: 2 row^2 feature flops; 16 row^2 bytes.
    """
    square = 1 - (unit @ unit.T).square_()
    square = (square + square.T).div_(2)
    square[square < SAME**2] = 0
    square.fill_diagonal_(0)
    return square.sqrt_()

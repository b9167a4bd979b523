"""Rows as the matrices that they are: what methods about weights, updates and their gradients share."""

from math import prod

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tasks.methods.contract import Block, Inputs
from tasks.numerics.spectrum import signed

VECTOR = "the rows have no shape of a matrix (a vector, or a projected gradient): each counts as a matrix of one column"


def in_order(block: Block, port: str = "x") -> Tensor:
    """The rows of a port in the order of the capture."""
    return block[port][torch.argsort(block.index)]


def sides(inputs: Inputs, port: str = "x") -> tuple[int, int]:
    """Rows and columns of the matrix that a row is: its first axis, and all others; one column for vectors."""
    shape = inputs.shapes.get(port, (inputs.widths[port],))
    return shape[0], prod(shape[1:])


def caveats(inputs: Inputs, port: str = "x") -> tuple[str, ...]:
    """What a reader must know where rows are no matrices."""
    return (VECTOR,) if sides(inputs, port)[1] == 1 else ()


def mean_of_pairs(values: Float64[Tensor, "row row"], kept: Int64[Tensor, "kept"]) -> float | None:
    """Over ordered pairs of different kept rows; None if there are none."""
    if len(kept) < 2:
        return None
    among = values[kept][:, kept]
    apart = ~torch.eye(len(kept), dtype=torch.bool, device=values.device)
    return float(among[apart].mean())


def overlap(a: Float64[Tensor, "one feature"], b: Float64[Tensor, "other feature"]) -> float:
    """Of the subspaces of two sets of orthonormal rows: |A B'|_F^2 over the larger dimension; 0 where one is empty."""
    larger = max(len(a), len(b))
    return float((a @ b.T).square().sum() / larger) if larger else 0.0


def chance(a: int, b: int, n: int) -> tuple[float, float]:
    """Mean and standard deviation of `overlap` for random subspaces of these dimensions in n.

    From the Beta laws of their angles: |A B'|_F^2 has mean a b / n and variance 2 a b (n - a) (n - b) / (n^2 (n - 1) (n + 2)).
    """
    larger = max(a, b)
    if not larger:
        return 0.0, 0.0
    variance = 2 * a * b * (n - a) * (n - b) / (n**2 * (n - 1) * (n + 2)) if n > 1 else 0.0
    return a * b / n / larger, variance**0.5 / larger


def left_basis(matrix: Float[Tensor, "out in"], rank: int) -> Float64[Tensor, "component out"]:
    """The leading left singular vectors of a matrix as orthonormal rows; fewer where its rank is lower, up to the rounding of its dtype.

    Cost: out in min(out, in).
    """
    exact = matrix.double()
    u, s, _ = torch.linalg.svd(exact, full_matrices=False)
    floor = max(exact.shape) * torch.finfo(matrix.dtype).eps * float(s[0]) if len(s) else 0.0
    kept = min(rank, int((s > floor).sum()))
    return signed(u[:, :kept].T.contiguous()) if kept else u.new_zeros(0, len(u))

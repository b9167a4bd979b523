"""All distances between some rows: from a product of matrices, and from differences where a product would lose digits.

|x - y|^2 = |x|^2 + |y|^2 - 2 x.y errs by at most (feature + 8) 2^-52 (|x|^2 + |y|^2). Pairs whose square is below NEAR of that sum are
computed again as differences, so that every distance is right to (feature + 8) 2^-53 / NEAR of itself, and equal rows are at distance
zero exactly.
"""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from schemas.errors import MethodError

Distances = Float64[Tensor, "row row"]
NEAR = 1e-4
HUGE = 2.0**1000
BLOCK, NUMBERS = 512, 1 << 22
"""Rows of products and numbers of differences that are worked on at once."""


def pairwise(x: Float[Tensor, "row feature"]) -> Distances:
    """Euclidean distances, symmetric to the bit, with zeros on the diagonal.

    Rows are scaled by a power of two and moved to their common centre, so that no square overflows and a common offset costs no digits.

    Raises:
        MethodError: for numbers above 1e301, whose distances might overflow.

    Cost: row^2 feature multiplications, as many differences where all rows are near each other; 16 row^2 bytes.
    """
    if not len(x):
        return torch.zeros(0, 0, dtype=torch.float64, device=x.device)
    x = x.double()
    largest = float(x.abs().max())
    refuse_huge(largest)
    scale = 2.0 ** -max(math.frexp(largest)[1], -1000) if largest > 0 else 1.0
    x = x * scale
    x = x - x.mean(0)
    square = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for low in range(0, len(x), BLOCK):
        square[low : low + BLOCK, : low + BLOCK] = _squares(x[low : low + BLOCK], x[: low + BLOCK])
    square = square.tril_(-1)
    return (square + square.T).sqrt_() / scale


def refuse_huge(largest: float) -> None:
    """Refuse numbers whose sums and differences might overflow.

    Raises:
        MethodError: above 1e301.
    """
    if largest > HUGE:
        raise MethodError(
            f"the largest number of the rows is {largest:g}, distances take at most {HUGE:.2g}; scale the rows"
        )


def root_mean_square(distance: Distances) -> float:
    """Root of the mean square over pairs of different rows, of which there is one at least."""
    n, largest = len(distance), float(distance.max())
    if largest == 0:
        return 0.0
    return math.sqrt(float((distance / largest).square().sum()) / (n * (n - 1))) * largest


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """[x, y] squared distances."""
    sums = x.square().sum(1)[:, None] + y.square().sum(1)
    found = torch.addmm(sums, x, y.T, alpha=-2)
    near = torch.nonzero(found <= NEAR * sums)
    for a, b in (pairs.T for pairs in torch.split(near, max(1, NUMBERS // max(1, x.shape[1])))):
        found[a, b] = (x[a] - y[b]).square().sum(1)
    return found


def duplicates(distance: Distances) -> int:
    """How many rows equal an earlier one."""
    return int((distance == 0).tril(-1).any(1).sum())


def distinct(distance: Distances) -> Int64[Tensor, " distinct"]:
    """Rows that equal no earlier one."""
    return torch.nonzero(~(distance == 0).tril(-1).any(1)).flatten()


def median(distance: Distances) -> float:
    """Of pairs of different rows that are not equal; the lower of the two middle ones; NaN without such a pair."""
    values = distance[(distance > 0).tril_(-1)]
    return float(values.median()) if len(values) else math.nan


def part(distance: Distances, rows: Int64[Tensor, " chosen"]) -> Float64[Tensor, "chosen chosen"]:
    """Distances among some of the rows."""
    return distance[rows][:, rows]


def directions(
    x: Float[Tensor, "row feature"],
) -> tuple[Float64[Tensor, "kept feature"], Int64[Tensor, " kept"]]:
    """Rows scaled to length 1, and which rows they are: those of length zero have no direction."""
    x = x.double()
    largest = x.abs().amax(1, keepdim=True) if len(x) else x[:, :1]
    kept = torch.nonzero(largest[:, 0] > 0).flatten()
    x = x[kept] / largest[kept]  # or squares of very large and small numbers would be none
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True), kept

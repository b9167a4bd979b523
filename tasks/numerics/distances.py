"""All distances between some rows, from differences, so that equal rows are at distance zero exactly."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Distances = Float64[Tensor, "row row"]


def pairwise(x: Float[Tensor, "row feature"]) -> Distances:
    """Euclidean distances, symmetric to the bit, with zeros on the diagonal.

    Differences are taken about the common centre and scaled by a power of two, so that no square overflows.

    Cost: row^2 feature differences, 8 row^2 bytes.
    """
    if not len(x):
        return torch.zeros(0, 0, dtype=torch.float64, device=x.device)
    x = x.double()
    largest = float(x.abs().max())
    scale = 2.0 ** -max(math.frexp(largest)[1], -1000) if largest > 0 else 1.0
    x = x * scale
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / scale


def duplicates(distance: Distances) -> int:
    """How many rows equal an earlier one."""
    return int((distance == 0).tril(-1).any(1).sum())


def median(distance: Distances) -> float:
    """Of pairs of different rows that are not equal; the lower of the two middle ones; NaN without such a pair."""
    n = len(distance)
    low, high = torch.tril_indices(n, n, -1, device=distance.device)
    values = distance[low, high]
    return float(values[values > 0].median()) if bool((values > 0).any()) else math.nan


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

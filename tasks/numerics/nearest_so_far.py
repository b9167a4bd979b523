"""The k nearest rows found so far, and how more pairs come in: distances from differences in float64, ties to the smaller index."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from tasks.numerics.distance_bounds import UNIT, Side, distances, least


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows found so far, nearest first."""

    distance: Float64[Tensor, "row k"]
    """Infinite where fewer than k rows have been seen."""
    index: Int64[Tensor, "row k"]
    """-1 where fewer than k rows have been seen."""

    def part(self, which: slice | Tensor) -> "Neighbours":
        """Of some rows."""
        return Neighbours(self.distance[which], self.index[which])

    def put(self, which: slice | Tensor, other: "Neighbours") -> None:
        """Change some rows in place."""
        self.distance[which], self.index[which] = other.distance, other.index


def none_yet(n: int, k: int, device: str | torch.device = "cpu") -> Neighbours:
    """The neighbours of n rows before any other row was seen."""
    distance = torch.full((n, k), torch.inf, dtype=torch.float64, device=device)
    return Neighbours(distance, torch.full((n, k), -1, dtype=torch.int64, device=device))


def after(
    found: Neighbours, row: Int64[Tensor, " pair"], column: Int64[Tensor, " pair"], x: Side, y: Side
) -> Neighbours:
    """Neighbours after some pairs, sorted by row."""
    count = torch.bincount(row, minlength=len(x.rows))
    place = torch.arange(len(row), device=row.device) - (torch.cumsum(count, 0) - count)[row]
    other = none_yet(len(x.rows), int(count.max()), row.device)
    other.distance[row, place] = distances(x.rows, y.rows, row, column)
    other.index[row, place] = y.name[column]
    return _smallest(found, other, found.distance.shape[1])


def limit_of(found: Neighbours, width: int, scale: float) -> Float32[Tensor, " row"]:
    """What a bound may be at most for a column to matter: from the k-th distance, rounded up to float32."""
    reach = (found.distance[:, -1] * scale).square() * (1 + UNIT) + least(width)
    return torch.nextafter(reach.float(), reach.new_tensor(torch.inf).float())


def _smallest(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """The k nearest of both; equal distances in order of index, absent ones last."""
    distance = torch.cat([a.distance, b.distance], dim=1)
    index = torch.cat([a.index, b.index], dim=1)
    order = torch.argsort(index, dim=1, stable=True)
    distance, index = distance.gather(1, order), index.gather(1, order)
    order = torch.argsort(distance, dim=1, stable=True)[:, :k]
    return Neighbours(distance.gather(1, order), index.gather(1, order))

"""For each row the other row to which a number changes most per distance: max |a_i - a_j| / |x_i - x_j|, exactly, in blocks.

As in the search for neighbours, products in float32 give lower bounds of distances, hence upper bounds of slopes; the largest are
computed again from differences in float64, and all that could exceed them where the next bound does.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tasks.numerics.distance_bounds import Side, distances, frame_of, least, lower_bounds, side_of, sizes_of

TRIED = 8
"""Pairs of a row that are computed exactly at first."""
COLUMNS = 8192
"""At once: several arrays of bounds are held."""


@dataclass(frozen=True)
class Steepest:
    """The steepest pair of each row found so far."""

    slope: Float64[Tensor, " row"]
    """0 before a row with another number was seen; infinite for one at distance 0."""
    distance: Float64[Tensor, " row"]
    """To the other row; infinite before one was seen."""
    index: Int64[Tensor, " row"]
    """The other row, -1 before one was seen; the least of equally steep ones."""


def none_yet(n: int, device: str | torch.device = "cpu") -> Steepest:
    """Before any other row was seen."""
    slope = torch.zeros(n, dtype=torch.float64, device=device)
    return Steepest(slope, slope + torch.inf, torch.full_like(slope, -1, dtype=torch.int64))


def steepest(
    found: Steepest,
    x: Float[Tensor, "row feature"],
    x_index: Int64[Tensor, " row"],
    x_number: Float64[Tensor, " row"],
    y: Float[Tensor, "column feature"],
    y_index: Int64[Tensor, " column"],
    y_number: Float64[Tensor, " column"],
) -> Steepest:
    """The steepest of what was found and of the pairs with y.

    Args:
        found: of x so far.
        x: rows of any floating dtype.
        x_index: what x's rows are called, each once.
        x_number: finite.
        y: the other rows.
        y_index: what y's rows are called; each name is seen in one call only.
        y_number: finite.

    Cost: 2 row column feature flops in float32, some passes over row x column bounds, and 8 row feature differences in float64 per
        8192 columns.
    """
    if len(x) == 0 or len(y) == 0:
        return found
    frame, rows_at_once = frame_of(x, y), sizes_of(x).rows // 2
    best = Steepest(found.slope.clone(), found.distance.clone(), found.index.clone())
    left, right = side_of(x, x_index, None, frame), side_of(y, y_index, None, frame)
    for first in range(0, len(y), COLUMNS):
        columns = slice(first, first + COLUMNS)
        for low in range(0, len(x), rows_at_once):
            rows = slice(low, low + rows_at_once)
            before = Steepest(best.slope[rows], best.distance[rows], best.index[rows])
            after = _tile(
                before, left.part(rows), x_number[rows], right.part(columns), y_number[columns], frame.scale
            )
            best.slope[rows], best.distance[rows], best.index[rows] = after.slope, after.distance, after.index
    return best


def _tile(found: Steepest, x: Side, a: Tensor, y: Side, b: Tensor, scale: float) -> Steepest:
    """Steepest pairs of a few rows after a few columns."""
    upper = _upper(x, a, y, b, scale)
    n = min(TRIED + 1, len(y.rows))
    most, column = torch.topk(upper, n, dim=1)
    merged = _steeper(found, x, a, y, b, column)
    open_rows = torch.nonzero((most[:, -1] >= merged.slope) & (n < len(y.rows))).flatten().tolist()
    for row in open_rows:
        chosen = torch.nonzero(upper[row] >= merged.slope[row]).flatten()
        one = slice(row, row + 1)
        own = x.part(one)
        for some in torch.split(chosen, max(2, sizes_of(b).differences // max(1, x.rows.shape[1]))):
            before = Steepest(merged.slope[one], merged.distance[one], merged.index[one])
            after = _steeper(before, own, a[one], y, b, some[None, :])
            merged.slope[one], merged.distance[one], merged.index[one] = (
                after.slope,
                after.distance,
                after.index,
            )
    return merged


def _upper(x: Side, a: Tensor, y: Side, b: Tensor, scale: float) -> Tensor:
    """What each slope is at most; 0 for a row and itself, and where numbers are equal."""
    room = torch.empty(len(x.rows), len(y.rows), dtype=torch.float32, device=a.device)
    low = lower_bounds(x, y, room).sub_(least(x.rows.shape[1])).clamp_(min=0).sqrt_()
    change = (a[:, None] - b[None, :]).abs_()
    return torch.where(change > 0, change * scale / low, 0.0)


def _steeper(found: Steepest, x: Side, a: Tensor, y: Side, b: Tensor, column: Tensor) -> Steepest:
    """The steepest of what was found and of some columns of each row, from true distances."""
    row = torch.arange(len(column), device=column.device).repeat_interleave(column.shape[1])
    distance = distances(x.rows, y.rows, row, column.flatten()).view(column.shape)
    change = (a[:, None] - b[column]).abs()
    there = (change > 0) & (y.name[column] != x.name[:, None])
    slope = torch.cat([found.slope[:, None], torch.where(there, change / distance, 0.0)], 1)
    index = torch.cat([found.index[:, None], y.name[column]], 1)
    distance = torch.cat([found.distance[:, None], distance], 1)
    best = slope.amax(1, keepdim=True)
    last = torch.iinfo(index.dtype).max
    place = index.where((slope == best) & ((best > 0) | (index < 0)), last).argmin(1, keepdim=True)
    seen = best[:, 0] > 0
    return Steepest(
        best[:, 0],
        distance.gather(1, place)[:, 0].where(seen, torch.inf),
        index.gather(1, place)[:, 0].where(seen, -1),
    )

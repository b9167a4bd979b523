"""The tiles of a search over pairs of rows: which pairs meet when, and the lower bounds of each tile."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from tasks.numerics.candidates import GROUP
from tasks.numerics.distance_bounds import Side, lower_bounds, sizes_of


class Tile(NamedTuple):
    """Rows against columns."""

    rows: slice
    columns: slice
    both: bool
    """Whether its bounds serve the columns too."""


def tiles(n: int, columns: int, rows_at_once: int, columns_at_once: int, both: bool) -> Iterator[Tile]:
    """All pairs; where they serve both sides each pair once, first those of rows close together, so that limits are low early."""
    cut = [slice(low, min(low + rows_at_once, n)) for low in range(0, n, rows_at_once)]
    if both:
        yield from (Tile(rows, rows, False) for rows in cut)
    for rows in cut:
        for low in range(rows.stop if both else 0, columns, columns_at_once):
            yield Tile(rows, slice(low, min(low + columns_at_once, columns)), both)


def room_for(x: Side, y: Side) -> Tensor:
    """For the largest tile."""
    sizes = sizes_of(x.rows)
    n, m = (-(-min(most, len(s.rows)) // GROUP) * GROUP for most, s in ((sizes.rows, x), (max(sizes[:2]), y)))
    return torch.empty(n * m, dtype=torch.float32, device=x.rows.device)


def own_columns(x: Side, y: Side) -> Int64[Tensor, " row"]:
    """The column of each row's own name, -1 if there is none."""
    order = torch.argsort(y.name)
    place = order[torch.searchsorted(y.name[order], x.name).clamp_(max=len(order) - 1)]
    return place.where(y.name[place] == x.name, -1)


def bounds_of(x: Side, y: Side, tile: Tile, own: Tensor, room: Tensor) -> Tensor:
    """Lower bounds of a tile, infinite for a row and itself, or its class, and beyond the tile up to whole groups."""
    left, right = x.part(tile.rows), y.part(tile.columns)
    n, m = len(left.rows), len(right.rows)
    wide, high = -(-m // GROUP) * GROUP, -(-n // GROUP) * GROUP
    bounds = room[: high * wide].view(high, wide)
    bounds[n:], bounds[:, m:] = torch.inf, torch.inf
    low = lower_bounds(left, right, bounds[:n, :m])
    if left.group is not None and right.group is not None:
        low.masked_fill_(left.group[:, None] == right.group[None, :], torch.inf)
        return bounds
    column = own[tile.rows] - tile.columns.start
    row = torch.nonzero((column >= 0) & (column < m)).flatten()
    low[row, column[row]] = torch.inf
    return bounds

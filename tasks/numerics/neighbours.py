"""Exact k nearest neighbours in blocks, Euclidean, with distances that are computed from differences.

Products of matrices in float32 bound all squared distances from below (`distance_bounds`); of each row the columns are kept whose bound
does not exceed the distance that k columns are known to keep (`candidates`). These alone are computed as differences in float64, and
where more could matter than is kept, all that could. So the answer is that of computing all differences, for any blocks; ties go to
the smaller index. A set against itself takes each product once: a tile's bounds serve its rows and its columns.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tasks.numerics import candidates
from tasks.numerics.candidates import Candidates
from tasks.numerics.distance_bounds import (
    UNIT,
    Frame,
    Side,
    allowance,
    distances,
    frame_of,
    least,
    side_of,
    sizes_of,
)
from tasks.numerics.distance_tiles import bounds_of, own_columns, room_for, tiles

MOST_KEPT = 64
"""Neighbours up to which a set against itself takes products once: candidates of all its rows are then kept."""


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


def nearest(
    found: Neighbours,
    x: Float[Tensor, "row feature"],
    x_index: Int64[Tensor, " row"],
    y: Float[Tensor, "column feature"],
    y_index: Int64[Tensor, " column"],
    classes: tuple[Int64[Tensor, " row"], Int64[Tensor, " column"]] | None = None,
) -> Neighbours:
    """The nearest of what was found and of y; a row is no neighbour of itself.

    Args:
        found: the neighbours of x so far.
        x: rows of any floating dtype.
        x_index: what x's rows are called, each once.
        y: rows that may be neighbours.
        y_index: what y's rows are called; each name is seen in one call only.
        classes: of x and of y: rows of one class are no neighbours either.

    Cost: 2 row column feature flops in float32, half as many where y is x (up to 64 neighbours), and about row k feature differences
        in float64. Beside the rows a copy of both in float32, and 36 (k + 8) bytes a row.
    """
    if len(x) == 0 or len(y) == 0:
        return found
    frame, best = frame_of(x, y), Neighbours(found.distance.clone(), found.index.clone())
    of_x, of_y = (None, None) if classes is None else classes
    left = side_of(x, x_index, of_x, frame)
    if found.distance.shape[1] <= MOST_KEPT and _same((x_index, of_x, x), (y_index, of_y, y)):
        _search(best, 0, left, left, frame, both=True)
        return best
    right = side_of(y, y_index, of_y, frame)
    for low in range(0, len(x), sizes_of(x).rows):
        _search(best, low, left.part(slice(low, low + sizes_of(x).rows)), right, frame, both=False)
    return best


def _same(x: tuple[Tensor | None, ...], y: tuple[Tensor | None, ...]) -> bool:
    """Whether both are the same rows under the same names."""
    return all(
        a is b or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(x, y, strict=True)
    )


def _search(best: Neighbours, first: int, x: Side, y: Side, frame: Frame, *, both: bool) -> None:
    """Change the neighbours of x, whose rows are those of `best` from the first on, to what they are after y."""
    found = best.part(slice(first, first + len(x.rows)))
    own = own_columns(x, y)
    kept = _candidates(found, x, y, own, frame, both)
    rows_at_once = sizes_of(x.rows).rows
    for some in torch.split(torch.arange(len(x.rows), device=own.device), rows_at_once):
        best.put(some + first, _exact(found.part(some), kept, some, x, y))
    unsure = torch.nonzero(kept.open).flatten()
    for some in torch.split(unsure, max(1, rows_at_once // 8)) if len(unsure) else ():
        after = _thorough(found.part(some), kept.limit[some], x.part(some), y, own[some], frame.scale)
        best.put(some + first, after)


def _candidates(found: Neighbours, x: Side, y: Side, own: Tensor, frame: Frame, both: bool) -> Candidates:
    """What may be among the nearest rows, from all tiles."""
    width, sizes = x.rows.shape[1], sizes_of(x.rows)
    limit = _limit(found, width, frame.scale)
    k, room = found.distance.shape[1], room_for(x, y)
    kept = candidates.none_yet(k, 2 * allowance(width), least(width), limit, x.square, y.square)
    for tile in tiles(len(x.rows), len(y.rows), sizes.rows, sizes.columns, both):
        bounds = bounds_of(x, y, tile, own, room)
        kept.take(tile.rows, bounds[: tile.rows.stop - tile.rows.start], tile.columns.start)
        if tile.both:
            kept.take(tile.columns, bounds.T[: tile.columns.stop - tile.columns.start], tile.rows.start)
    return kept


def _limit(found: Neighbours, width: int, scale: float) -> Tensor:
    """What a bound may be at most for a column to matter: from the k-th distance, rounded up to float32."""
    reach = (found.distance[:, -1] * scale).square() * (1 + UNIT) + least(width)
    return torch.nextafter(reach.float(), reach.new_tensor(torch.inf).float())


def _exact(found: Neighbours, kept: Candidates, rows: Tensor, x: Side, y: Side) -> Neighbours:
    """Neighbours after the candidates of some rows."""
    most = int(kept.count[rows].max())
    low, column = kept.low[rows][:, :most], kept.column[rows][:, :most]
    there = (low <= kept.limit[rows, None]) & (column >= 0)
    there &= ~kept.open[rows, None]
    return _after(found, there, column, x.part(rows), y)


def _after(found: Neighbours, there: Tensor, column: Tensor, x: Side, y: Side) -> Neighbours:
    """Neighbours after the columns that are there."""
    row, place = torch.nonzero(there).unbind(1)
    chosen = column[row, place]
    other = none_yet(len(there), there.shape[1], there.device)
    other.distance[row, place] = distances(x.rows, y.rows, row, chosen)
    other.index[row, place] = y.name[chosen]
    return _smallest(found, other, found.distance.shape[1])


def _thorough(found: Neighbours, limit: Tensor, x: Side, y: Side, own: Tensor, scale: float) -> Neighbours:
    """Neighbours of a few rows after all columns that could matter."""
    n, width, room = *x.rows.shape, room_for(x, y)
    for tile in tiles(n, len(y.rows), n, sizes_of(x.rows).columns, both=False):
        low = bounds_of(x, y, tile, own, room)[:n]
        limit = torch.minimum(limit, _limit(found, width, scale))
        there = (low <= limit[:, None]) & ~low.isinf()
        column = torch.arange(low.shape[1], device=low.device) + tile.columns.start
        found = _after(found, there, column.expand(n, -1), x, y)
    return found


def _smallest(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """The k nearest of both; equal distances in order of index, absent ones last."""
    distance = torch.cat([a.distance, b.distance], dim=1)
    index = torch.cat([a.index, b.index], dim=1)
    order = torch.argsort(index, dim=1, stable=True)
    distance, index = distance.gather(1, order), index.gather(1, order)
    order = torch.argsort(distance, dim=1, stable=True)[:, :k]
    return Neighbours(distance.gather(1, order), index.gather(1, order))

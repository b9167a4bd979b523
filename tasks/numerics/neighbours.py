"""Exact k nearest neighbours in blocks, Euclidean, with distances that are computed from differences.

Products of matrices in float32 bound all squared distances from below (`distance_bounds`); of each row the columns are kept whose bound
does not exceed the distance that k columns are known to keep (`candidates`). These alone are computed as differences in float64, and
where more could matter than is kept, all that could. So the answer is that of computing all differences, for any blocks; ties go to
the smaller index. A set against itself takes each product once: a tile's bounds serve its rows and its columns. Where a few directions hold
most of the rows' differences (`bound_directions`), bounds are taken along these (`directed_search`).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tasks.numerics import candidates
from tasks.numerics.bound_directions import directions_of
from tasks.numerics.candidates import Candidates
from tasks.numerics.directed_search import nearest_along
from tasks.numerics.distance_bounds import Frame, Side, allowance, frame_of, least, side_of, sizes_of
from tasks.numerics.distance_tiles import bounds_of, own_columns, room_for, tiles
from tasks.numerics.nearest_so_far import Neighbours, after, limit_of, none_yet

__all__ = ["Neighbours", "nearest", "none_yet"]

MOST_KEPT = 64
"""Neighbours up to which a set against itself takes products once: candidates of all its rows are then kept."""


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

    Cost: 2 row column feature flops in float32, half as many where y is x (up to 64 neighbours), and fewer where fewer directions do; about
        row k feature differences in float64. Beside the rows a copy of both in float32, and 36 (k + 8) bytes a row.
    """
    if len(x) == 0 or len(y) == 0:
        return found
    k, best = found.distance.shape[1], Neighbours(found.distance.clone(), found.index.clone())
    frame, rows = frame_of(x, y), torch.arange(len(x), device=x.device)
    of_x, of_y = (None, None) if classes is None else classes
    itself = _same((x_index, of_x, x), (y_index, of_y, y))
    directions = directions_of(x, y, frame.centre, frame.scale, k)
    if directions is not None:
        along = frame._replace(directions=directions)
        left = side_of(x, x_index, of_x, along)
        right = left if itself else side_of(y, y_index, of_y, along)
        rows = nearest_along(best, left, right, frame.scale)
        itself = False
    if len(rows) == 0:
        return best
    right = side_of(y, y_index, of_y, frame)
    if itself and k <= MOST_KEPT:
        _search(best, rows, right, right, frame, both=True)
        return best
    for some in torch.split(rows, sizes_of(x).rows):
        of_some = None if of_x is None else of_x[some]
        _search(best, some, side_of(x[some], x_index[some], of_some, frame), right, frame, both=False)
    return best


def _same(x: tuple[Tensor | None, ...], y: tuple[Tensor | None, ...]) -> bool:
    """Whether both are the same rows under the same names."""
    return all(
        a is b or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(x, y, strict=True)
    )


def _search(best: Neighbours, rows: Tensor, x: Side, y: Side, frame: Frame, *, both: bool) -> None:
    """Change the neighbours of x, which are these rows of `best`, to what they are after y."""
    found = best.part(rows)
    own = own_columns(x, y)
    kept = _candidates(found, x, y, own, frame, both)
    at_once = sizes_of(x.rows).rows
    for some in torch.split(torch.arange(len(rows), device=own.device), at_once):
        best.put(rows[some], _exact(found.part(some), kept, some, x, y))
    unsure = torch.nonzero(kept.open).flatten()
    for some in torch.split(unsure, max(1, at_once // 8)) if len(unsure) else ():
        after_y = _thorough(found.part(some), kept.limit[some], x.part(some), y, own[some], frame.scale)
        best.put(rows[some], after_y)


def _candidates(found: Neighbours, x: Side, y: Side, own: Tensor, frame: Frame, both: bool) -> Candidates:
    """What may be among the nearest rows, from all tiles."""
    width, sizes = x.scaled.shape[1], sizes_of(x.rows)
    limit = limit_of(found, width, frame.scale)
    k, room = found.distance.shape[1], room_for(x, y)
    kept = candidates.none_yet(k, 2 * allowance(width), least(width), limit, x.square, y.square)
    for tile in tiles(len(x.rows), len(y.rows), sizes.rows, sizes.columns, both):
        bounds = bounds_of(x, y, tile, own, room)
        kept.take(tile.rows, bounds[: tile.rows.stop - tile.rows.start], tile.columns.start)
        if tile.both:
            kept.take(tile.columns, bounds.T[: tile.columns.stop - tile.columns.start], tile.rows.start)
    return kept


def _exact(found: Neighbours, kept: Candidates, rows: Tensor, x: Side, y: Side) -> Neighbours:
    """Neighbours after the candidates of some rows."""
    most = int(kept.count[rows].max())
    low, column = kept.low[rows][:, :most], kept.column[rows][:, :most]
    there = (low <= kept.limit[rows, None]) & (column >= 0)
    there &= ~kept.open[rows, None]
    row, place = torch.nonzero(there).unbind(1)
    return after(found, row, column[row, place], x.part(rows), y)


def _thorough(found: Neighbours, limit: Tensor, x: Side, y: Side, own: Tensor, scale: float) -> Neighbours:
    """Neighbours of a few rows after all columns that could matter."""
    n, width, room = *x.scaled.shape, room_for(x, y)
    for tile in tiles(n, len(y.rows), n, sizes_of(x.rows).columns, both=False):
        low = bounds_of(x, y, tile, own, room)[:n]
        limit = torch.minimum(limit, limit_of(found, width, scale))
        row, column = torch.nonzero((low <= limit[:, None]) & ~low.isinf()).unbind(1)
        found = after(found, row, column + tile.columns.start, x, y)
    return found

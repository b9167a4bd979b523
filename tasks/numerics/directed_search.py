"""The search for neighbours along few directions: a few rows at a time see the bounds of all columns.

The columns of the k least bounds are computed exactly first; what they give is a limit, and all columns whose bounds do not exceed it
follow. Bounds are looked through by the least of every GROUP columns.
"""

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from tasks.numerics.bound_directions import DIFFERENCE
from tasks.numerics.candidates import GROUP, LARGEST
from tasks.numerics.distance_bounds import Side, sizes_of
from tasks.numerics.distance_tiles import Tile, bounds_of, own_columns
from tasks.numerics.nearest_so_far import Neighbours, after, limit_of

ENOUGH = 1024
"""Rows after which directions that leave most of them are given up."""


def nearest_along(best: Neighbours, x: Side, y: Side, scale: float) -> Int64[Tensor, " row"]:
    """Change `best` to what the neighbours of x are after y, both sides in a frame with directions.

    Returns:
        Rows that are left as they were: directions leave so many of their columns open that products of all features cost less.

    Cost: 2 row column (direction + 1) flops in float32, about four passes over as many bounds, and row k feature differences in float64 or
        somewhat more.
    """
    sizes, n, m = sizes_of(x.rows), len(x.rows), len(y.rows)
    wide = -(-m // GROUP) * GROUP
    at_once = min(max(GROUP, sizes.rows * sizes.columns // wide // GROUP * GROUP), -(-n // GROUP) * GROUP)
    room = torch.empty(at_once * wide, dtype=torch.float32, device=x.rows.device)
    own, left = own_columns(x, y), []
    for some in torch.split(torch.arange(n, device=own.device), at_once):
        rows = slice(int(some[0]), int(some[-1]) + 1)
        tile = Tile(slice(0, len(some)), slice(0, m), False)
        bounds = bounds_of(x.part(rows), y, tile, own[rows], room)[tile.rows]
        after_y, done = _search(best.part(rows), x.part(rows), y, bounds, scale)
        best.put(some[done], after_y.part(done))
        left.append(some[~done])
        if rows.stop >= ENOUGH and 2 * sum(map(len, left)) > rows.stop:  # the trial met others
            left.append(torch.arange(rows.stop, n, device=own.device))
            break
    return torch.cat(left)


def _search(
    found: Neighbours, x: Side, y: Side, bounds: Float32[Tensor, "row column"], scale: float
) -> tuple[Neighbours, Bool[Tensor, " row"]]:
    """Neighbours of a few rows after all columns, and which rows they are right for."""
    k, width = found.distance.shape[1], x.scaled.shape[1]
    least = bounds.view(len(bounds), GROUP, -1).amin(1)
    first = torch.topk(least, min(k, least.shape[1]), dim=1, largest=False).values[:, -1]
    first = first.minimum(limit_of(found, width, scale)).clamp_(max=LARGEST)
    found = after(found, *_between(bounds, least, torch.full_like(first, -torch.inf), first), x, y)
    limit = limit_of(found, width, scale).clamp_(max=LARGEST)
    done = (least <= limit[:, None]).sum(1) <= 2 * k + len(y.rows) // DIFFERENCE
    return after(found, *_between(bounds, least, first, limit.where(done, -torch.inf)), x, y), done


def _between(
    bounds: Float32[Tensor, "row column"],
    least: Float32[Tensor, "row group"],
    above: Float32[Tensor, " row"],
    limit: Float32[Tensor, " row"],
) -> tuple[Int64[Tensor, " pair"], Int64[Tensor, " pair"]]:
    """Rows and columns of bounds that lie above one number and not above another, sorted by row."""
    row, group = torch.nonzero(least <= limit[:, None]).unbind(1)
    values = bounds.view(len(bounds), GROUP, -1)[row, :, group]
    pair, inside = torch.nonzero((values <= limit[row, None]) & (values > above[row, None])).unbind(1)
    return row[pair], inside * least.shape[1] + group[pair]

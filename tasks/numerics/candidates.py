"""For each row of a search the columns that may be among its k nearest, chosen from tiles of lower bounds.

A row keeps the columns of its smallest bounds, and a limit: as k columns are known to be no further, one whose bound exceeds it cannot
matter. Tiles are looked through by the least bound of every GROUP columns, so that what does not matter costs a fraction of a
product. A row of which more columns could matter than there is room for is `open`: all columns must be computed for it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

PAD = 8
"""Candidates beyond k that a row may keep."""
GROUP = 16
"""Bounds of a row of a tile that are looked at together; they lie a whole part of it apart, so that memory is passed in order."""
LARGEST = torch.finfo(torch.float32).max


@dataclass
class Candidates:
    """Changed in place. Free places hold infinity and -1."""

    k: int
    slack: float
    """By what a squared distance exceeds its bound at most, as a share of |x|^2 + |y|^2."""
    least: float
    """By what it may be off on either side beside that."""
    low: Float32[Tensor, "row place"]
    column: Int64[Tensor, "row place"]
    count: Int64[Tensor, " row"]
    limit: Float32[Tensor, " row"]
    open: Bool[Tensor, " row"]
    x_square: Float64[Tensor, " row"]
    y_square: Float64[Tensor, " column"]

    @property
    def kept(self) -> int:
        """Candidates of a row after sorting, at most."""
        return self.k + PAD

    def take(self, rows: slice, tile: Float32[Tensor, "row column"], first: int) -> None:
        """Note the columns of a tile that may matter to rows.

        Args:
            rows: which.
            tile: lower bounds, infinite where a column is no neighbour; a multiple of GROUP columns.
            first: the number of the tile's first column.
        """
        groups = tile.view(len(tile), GROUP, -1)
        bar = self.limit[rows].clamp(max=LARGEST).masked_fill(self.open[rows], -torch.inf)
        free = self.low.shape[1] - self.count[rows]
        hit = _least(tile) <= bar[:, None]
        crowded = ((hit.sum(1) > free) | self.limit[rows].isinf()) & ~self.open[rows]
        row, group = torch.nonzero(hit & ~crowded[:, None]).unbind(1)
        low = groups[row, :, group]
        pair, inside = torch.nonzero(low <= bar[row, None]).unbind(1)
        found = row[pair], inside * groups.shape[2] + group[pair] + first, low[pair, inside]
        crowded |= torch.bincount(found[0], minlength=len(bar)) > free
        self._append(rows, found, crowded)
        self._tidy(rows, tile, first, crowded)

    def _append(self, rows: slice, found: tuple[Tensor, Tensor, Tensor], crowded: Tensor) -> None:
        """Put candidates, sorted by row, into the free places of rows that are not crowded."""
        row, column, low = (values[~crowded[found[0]]] for values in found)
        new = torch.bincount(row, minlength=len(crowded))
        start = self.count[rows] - (torch.cumsum(new, 0) - new)
        place = start[row] + torch.arange(len(row), device=row.device)
        self.low[rows].index_put_((row, place), low)
        self.column[rows].index_put_((row, place), column)
        self.count[rows] += new

    def _tidy(self, rows: slice, tile: Tensor, first: int, crowded: Tensor) -> None:
        """Sort rows that are nearly full, and crowded ones with the smallest bounds of the tile."""
        full = torch.nonzero((self.count[rows] > 2 * self.kept) & ~crowded).flatten() + rows.start
        if len(full):
            self._keep(full, self.low.index_select(0, full), self.column.index_select(0, full))
        which = torch.nonzero(crowded).flatten()
        if len(which):
            of_tile = tile if len(which) == len(tile) else tile[which]
            low, column = torch.topk(of_tile, min(self.kept + 1, tile.shape[1]), dim=1, largest=False)
            column, which = (column + first).masked_fill_(low.isinf(), -1), which + rows.start
            before = self.low.index_select(0, which), self.column.index_select(0, which)
            self._keep(which, torch.cat([before[0], low], 1), torch.cat([before[1], column], 1))

    def _keep(self, rows: Tensor, low: Tensor, column: Tensor) -> None:
        """Leave the smallest bounds to rows, and lower their limits."""
        low, place = torch.topk(low, self.kept + 1, dim=1, largest=False)
        column = column.gather(1, place)
        square = self.x_square[rows, None] + self.y_square[column[:, : self.k]]
        reach = ((low[:, : self.k].double() + self.slack * square).amax(1) + 2 * self.least).float()
        limit = torch.minimum(self.limit[rows], torch.nextafter(reach, reach.new_tensor(torch.inf)))
        fits = low <= limit.clamp(max=LARGEST)[:, None]
        self.open[rows] |= fits[:, -1]
        self.limit[rows], self.count[rows] = limit, fits[:, :-1].sum(1)
        free, beyond = self.low.shape[1] - self.kept, ~fits[:, :-1]
        low, column = low[:, :-1].masked_fill(beyond, torch.inf), column[:, :-1].masked_fill(beyond, -1)
        self.low.index_copy_(0, rows, torch.nn.functional.pad(low, (0, free), value=torch.inf))
        self.column.index_copy_(0, rows, torch.nn.functional.pad(column, (0, free), value=-1))


def none_yet(
    k: int, slack: float, least: float, limit: Float32[Tensor, " row"], x_square: Tensor, y_square: Tensor
) -> Candidates:
    """Before any tile was seen; `limit` is infinite where nothing is known."""
    n, places = len(limit), 3 * (k + PAD)
    low = torch.full((n, places), torch.inf, dtype=torch.float32, device=limit.device)
    count = torch.zeros(n, dtype=torch.int64, device=limit.device)
    column = torch.full_like(low, -1, dtype=torch.int64)
    return Candidates(k, slack, least, low, column, count, limit, count > 0, x_square, y_square)


def _least(tile: Tensor) -> Tensor:
    """The least bound of each group, taken along memory."""
    if tile.stride(1) == 1:
        return tile.view(len(tile), GROUP, -1).amin(1)
    return tile.T.view(GROUP, -1, len(tile)).amin(0).T

"""Of each row the column with the largest product in size, exactly, mostly at the price of products in float32.

Products in float32 say which columns cannot be the one: those further below the best than rounding reaches. Of the others, of most rows
one, products are added up in float64, each alike wherever it stands, so that what is found depends neither on blocks nor on how matrices
are multiplied. Of equal ones the smaller index is kept. A product that is no larger than the rounding of one of that length is none.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tasks.numerics.largest_products import TILE_COLUMNS, TILE_ROWS, bar, inner

ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}
"""Of numbers in products of float32 tensors, by what `torch.set_float32_matmul_precision` allows."""
FEW = 4
"""Columns a row that are added up without looking at them in float64 first."""
AT_ONCE = 1 << 20
"""Numbers of the pairs that are added up together."""
PLAIN = 1e9
"""Lengths between this and its inverse are multiplied as they are."""


class Best(NamedTuple):
    """Of each row."""

    size: Float64[Tensor, " row"]
    """Of the product; 0 where there is none yet."""
    name: Int64[Tensor, " row"]
    """Index of the column; -1 where there is none yet."""
    column: Float64[Tensor, "row feature"]
    """Itself."""


class _Scaled(NamedTuple):
    """Rows and columns, by powers of two where float32 could not hold their products, so that no digit changes."""

    x: Float64[Tensor, "row feature"]
    y: Float64[Tensor, "column feature"]
    scale: Float64[Tensor, " row"]
    """Of products with a row."""
    length: Float64[Tensor, " row"]
    """Of the row, times the largest of a column."""


def improved(
    best: Best,
    x: Float64[Tensor, "row feature"],
    barred: Int64[Tensor, "row bar"],
    y: Float64[Tensor, "column feature"],
    y_index: Int64[Tensor, " column"],
) -> None:
    """Change the best to that after some more columns.

    Args:
        best: of columns with smaller indices than y's; is changed.
        x: finite rows.
        barred: columns that each row is to have no product with; -1 for none.
        y: finite columns.
        y_index: what columns are called, ascending.

    Cost: 2 row column feature flops in float32, and 2 feature flops for each column that is as good as a row's best to float32; in float64
    too where these are many. Memory for one tile.
    """
    scaled = _scaled(x, y)
    unit = _reach(x.shape[1], ROUNDING[torch.get_float32_matmul_precision()])
    for rows, columns, size in _sizes(scaled):
        bar(size, y_index[columns], barred[rows], -torch.inf)
        least, length = best.size[rows] * scaled.scale[rows], scaled.length[rows]
        some, mask = _near(size, least, unit * length)
        if int(mask.sum()) > FEW * len(some):
            mask = _near_exactly(scaled, rows, columns, some, mask, least[some])
        row, column = torch.nonzero(mask).unbind(1)
        if len(row):
            _take(best, x, y, y_index, some[row] + rows.start, column + columns.start)


def _sizes(scaled: _Scaled) -> Iterator[tuple[slice, slice, Tensor]]:
    """Sizes of products in float32, some rows with some columns at a time, in memory that the next take."""
    room = torch.empty(TILE_ROWS * TILE_COLUMNS, dtype=torch.float32, device=scaled.x.device)
    right = scaled.y.float()
    for first in range(0, len(scaled.x), TILE_ROWS):
        rows = slice(first, min(first + TILE_ROWS, len(scaled.x)))
        left = scaled.x[rows].float()
        for start in range(0, len(right), TILE_COLUMNS):
            columns = slice(start, min(start + TILE_COLUMNS, len(right)))
            shape = (len(left), columns.stop - start)
            products = room[: shape[0] * shape[1]].view(shape)
            yield rows, columns, torch.mm(left, right[columns].T, out=products).abs_()


def _scaled(x: Tensor, y: Tensor) -> _Scaled:
    rows, column = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1).amax()
    there = rows[rows > 0]
    if not len(there) or float(column) == 0 or (_plain(there) and _plain(column)):
        return _Scaled(x, y, torch.ones_like(rows), rows * column)
    x_scale, y_scale = (
        torch.ldexp(torch.ones_like(length), -torch.frexp(length).exponent) for length in (rows, column)
    )
    return _Scaled(
        x * x_scale[:, None], y * y_scale, x_scale * y_scale, (rows * x_scale) * (column * y_scale)
    )


def _plain(length: Tensor) -> bool:
    """Whether float32 holds products of vectors of such lengths, and their rounding."""
    return float(length.min()) > 1 / PLAIN and float(length.max()) < PLAIN


def _reach(width: int, unit: float) -> float:
    """How far a product of vectors of length 1 may be off; the numbers themselves were rounded, too."""
    return 2 * (width + 2) * unit


def _near(size: Tensor, least: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose best may be here, and of these which columns it may be."""
    top = size.amax(1).double()
    bound = torch.maximum(least, top - reach) - reach
    some = torch.nonzero(top >= bound).flatten()
    return some, size[some] >= bound[some, None]


def _near_exactly(
    scaled: _Scaled, rows: slice, columns: slice, some: Tensor, mask: Tensor, least: Tensor
) -> Tensor:
    """[row, column]: which of the columns that may be the best of some rows may still be by float64; not those of products that are
    rounding."""
    reach = _reach(scaled.x.shape[1], 2.0**-53) * scaled.length[rows][some]
    size = (scaled.x[rows][some] @ scaled.y[columns].T).abs_().where(mask, 0.0)
    bound = torch.maximum(least, size.amax(1) - reach) - reach
    return (size >= torch.maximum(bound, reach)[:, None]) & (size > 0)


def _take(best: Best, x: Tensor, y: Tensor, y_index: Tensor, rows: Tensor, columns: Tensor) -> None:
    """The best of some pairs, which are sorted by row and then by column, where they are better."""
    step = max(1, AT_ONCE // x.shape[1])
    parts = zip(torch.split(rows, step), torch.split(columns, step), strict=True)
    size = torch.cat([_product(x[r], y[c]) for r, c in parts])
    which, place = torch.unique_consecutive(rows, return_inverse=True)
    most = size.new_zeros(len(which)).scatter_reduce_(0, place, size, "amax")
    order = torch.arange(len(size), device=size.device).where(size == most[place], len(size))
    first = order.new_full((len(which),), len(size)).scatter_reduce_(0, place, order, "amin")
    better = most > best.size[which]
    row, column = which[better], columns[first[better]]
    best.size[row], best.name[row], best.column[row] = most[better], y_index[column], y[column]


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Sizes of products of pairs; 0 for what is rounding."""
    size = inner(y[:, None], x)[:, 0].abs()
    length = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    return size.where(size > _reach(x.shape[1], 2.0**-52) * length, 0.0)

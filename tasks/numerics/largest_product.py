"""Of each row the column with the largest product in size, exactly as in float64, mostly at the price of products in float32.

Products in float32 say in which tiles of columns the largest cannot be: those whose largest is further below the best than rounding
reaches. The others, of most rows one, are computed in float64, so that what is found has every digit of a search in float64. Of equal ones
the smaller index is kept.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from tasks.numerics.largest_products import TILE_COLUMNS, bar, tiles

ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}
"""Of numbers in products of float32 tensors, by what `torch.set_float32_matmul_precision` allows."""


class Best(NamedTuple):
    """Of each row."""

    size: Float64[Tensor, " row"]
    """Of the product; 0 where there is none yet."""
    name: Int64[Tensor, " row"]
    """Index of the column; -1 where there is none yet."""
    column: Float64[Tensor, "row feature"]
    """Itself."""


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

    Cost: 2 row column feature flops in float32, and as many in float64 over the tiles that may hold a row's best: one of 528 columns for
    most rows, all where no product is above the rounding of float32. Memory for one tile.
    """
    for columns, rows in _wanted(best.size, x, barred, y, y_index):
        names = y_index[columns]
        for tile in tiles(x[rows], y[columns], "float64"):
            some = rows[tile.rows]
            bar(tile.size, names, barred[some])
            column = tile.size.argmax(1)
            value = tile.size.gather(1, column[:, None])[:, 0]
            better = value > best.size[some]
            here, column = some[better], column[better]
            best.size[here], best.name[here], best.column[here] = (
                value[better],
                names[column],
                y[columns][column],
            )


def _wanted(
    least: Float64[Tensor, " row"], x: Tensor, barred: Tensor, y: Tensor, y_index: Tensor
) -> list[tuple[slice, Int64[Tensor, " some"]]]:
    """Tiles of columns, and the rows whose best they may hold."""
    x, row_scale = _small(x, torch.linalg.vector_norm(x, dim=1, keepdim=True))
    y, column_scale = _small(y, torch.linalg.vector_norm(y, dim=1).amax())
    top = x.new_zeros(len(x), -(-len(y) // TILE_COLUMNS))
    for tile in tiles(x, y, "float32"):
        bar(tile.size, y_index[tile.columns], barred[tile.rows])
        top[tile.rows, tile.columns.start // TILE_COLUMNS] = tile.size.amax(1).double()
    reach = 2 * (x.shape[1] + 2) * ROUNDING[torch.get_float32_matmul_precision()]
    bound = torch.maximum(least * row_scale[:, 0] * column_scale, top.amax(1) - reach) - reach
    there = top >= bound[:, None]
    return [
        (slice(first, min(first + TILE_COLUMNS, len(y))), torch.nonzero(there[:, number]).flatten())
        for number, first in enumerate(range(0, len(y), TILE_COLUMNS))
    ]


def _small(x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Multiplied by a power of two, so that lengths are at most 1 and no digit changes; the power."""
    scale = torch.ldexp(torch.ones_like(length), -torch.frexp(length).exponent)
    return x * scale, scale

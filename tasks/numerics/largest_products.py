"""Of each row the columns with the largest products in size, exactly, for any number of columns in blocks.

Products are taken in tiles of one shape, so that none depends on which rows it is computed with; of equal ones the smaller index is kept.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

Precision = Literal["float64", "float32"]

TILE_ROWS, TILE_COLUMNS = 528, 528
"""Multiples of 48: what is left over by the kernels of products, which take 4 to 48 rows or columns at once, has other last digits. Blocks
of fewer rows are filled up, so that larger tiles would mostly multiply zeros; here 512 rows fit with few."""
VECTOR = 64
"""A multiple of the numbers that any processor takes at a time."""


class Largest(NamedTuple):
    """Largest first."""

    product: Float64[Tensor, "row place"]
    """With its sign; 0 in a free place."""
    column: Int64[Tensor, "row place"]
    """Of the column; -1 in a free place."""
    total: Float64[Tensor, " row"]
    """Sum of the sizes of all products seen, those that found no place too."""


class Tile(NamedTuple):
    """Products of some rows with some columns, in memory that the next tile takes."""

    rows: slice
    columns: slice
    products: Float[Tensor, "tile_row tile_column"]
    size: Float[Tensor, "tile_row tile_column"]
    """Of the products, to be changed at will."""


def none_yet(n: int, places: int, device: torch.device | str) -> Largest:
    """Free places."""
    product = torch.zeros(n, places, dtype=torch.float64, device=device)
    return Largest(
        product, torch.full((n, places), -1, dtype=torch.int64, device=device), product.new_zeros(n)
    )


def largest(
    found: Largest,
    x: Float64[Tensor, "row feature"],
    x_index: Int64[Tensor, " row"],
    y: Float64[Tensor, "column feature"],
    y_index: Int64[Tensor, " column"],
    precision: Precision = "float64",
    barred: Int64[Tensor, "row bar"] | None = None,
) -> Largest:
    """The largest of what was found and of y; a row has no product with itself, and products of 0 take no place.

    Args:
        found: the largest of x so far, of columns with smaller indices than y's.
        x: rows.
        x_index: what rows are called.
        y: columns.
        y_index: what columns are called, ascending.
        precision: of the products.
        barred: columns that each row is to have no product with; -1 for none.

    Cost: 2 row column feature flops; memory for one tile.
    """
    best = Largest(*(values.clone() for values in found))
    for tile in tiles(x, y, precision):
        here, names = Largest(*(values[tile.rows] for values in best)), y_index[tile.columns]
        size = tile.size
        bar(size, names, x_index[tile.rows, None])
        if barred is not None:
            bar(size, names, barred[tile.rows])
        here.total.add_(size.sum(1, dtype=torch.float64))
        _keep(here, tile, size, names)
    return best


def tiles(
    x: Float64[Tensor, "row feature"], y: Float64[Tensor, "column feature"], precision: Precision
) -> Iterator[Tile]:
    """All products of rows with columns. Fresh memory for each tile would take longer than narrow products."""
    dtype = getattr(torch, precision)
    products = torch.empty((TILE_ROWS, TILE_COLUMNS), dtype=dtype, device=x.device)
    size = torch.empty_like(products)
    across = [
        _filled(y[c : c + TILE_COLUMNS].to(dtype), TILE_COLUMNS) for c in range(0, len(y), TILE_COLUMNS)
    ]
    for first in range(0, len(x), TILE_ROWS):
        rows = slice(first, min(first + TILE_ROWS, len(x)))
        left = _filled(x[rows].to(dtype), TILE_ROWS)
        for number, right in enumerate(across):
            columns = slice(number * TILE_COLUMNS, min((number + 1) * TILE_COLUMNS, len(y)))
            torch.mm(left, right.T, out=products)
            torch.abs(products, out=size)
            there = (slice(rows.stop - first), slice(columns.stop - columns.start))
            yield Tile(rows, columns, products[there], size[there])


def alike(function: Callable[[Tensor], Tensor], values: Float64[Tensor, "*axis"]) -> Float64[Tensor, "*axis"]:
    """A function of each number, whose last digits do not depend on where the number stands: processors take numbers several at a time, and
    the rest, which has other rounding, is here filled up."""
    flat = values.reshape(-1)
    filled = torch.nn.functional.pad(flat, (0, -len(flat) % VECTOR))
    return function(filled)[: len(flat)].reshape(values.shape)


def inner(
    values: Float64[Tensor, "row place feature"], x: Float64[Tensor, "row feature"]
) -> Float64[Tensor, "row place"]:
    """Products of each row with vectors of its own, added up alike for one row and for many, which products of matrices are not."""
    products: Tensor = (values * x[:, None]).sum(2)
    return products


def bar(
    size: Float[Tensor, "row column"],
    names: Int64[Tensor, " column"],
    barred: Int64[Tensor, "row bar"],
    value: float = 0.0,
) -> None:
    """Put a value where a column is barred from a row; names are ascending."""
    place = torch.searchsorted(names, barred).clamp(max=len(names) - 1)
    row, which = torch.nonzero(names[place] == barred).unbind(1)
    size[row, place[row, which]] = value


def _filled(rows: Tensor, n: int) -> Tensor:
    """A copy, whole ones too: products of rows that begin anywhere in memory have other last digits."""
    tile = rows.new_zeros(n, rows.shape[1])
    tile[: len(rows)] = rows
    return tile


def _keep(found: Largest, tile: Tile, size: Tensor, y_index: Tensor) -> None:
    """Put the larger ones of a tile among what was found."""
    places = found.product.shape[1]
    least = found.product[:, -1].abs()
    some = torch.nonzero(size.amax(1) > least).flatten()
    if not len(some):
        return
    size = size[some]
    top = torch.topk(size, min(places, size.shape[1]), dim=1)
    value, column = _first_of_equals(size, top.values, top.indices)
    signed = tile.products[some[:, None], column].double()
    name = torch.where(value > 0, y_index[column], -1)
    signed = torch.where(value > 0, signed, 0.0)
    signed, name = torch.cat([found.product[some], signed], 1), torch.cat([found.column[some], name], 1)
    order = torch.argsort(signed.abs(), dim=1, descending=True, stable=True)[:, :places]
    found.product[some], found.column[some] = signed.gather(1, order), name.gather(1, order)


def _first_of_equals(size: Tensor, value: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row, those of equal size in order of their columns, the first of these where not all have a place."""
    unsure: Bool[Tensor, " row"] = (size >= value[:, -1:]).sum(1) > value.shape[1]
    unsure &= value[:, -1] > 0
    if bool(unsure.any()):
        order = torch.argsort(size[unsure], dim=1, descending=True, stable=True)[:, : value.shape[1]]
        column = column.clone()
        column[unsure] = order
    column = column.sort(1).values
    order = torch.argsort(size.gather(1, column), dim=1, descending=True, stable=True)
    column = column.gather(1, order)
    return size.gather(1, column), column

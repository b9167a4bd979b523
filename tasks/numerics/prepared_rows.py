"""Rows as subspace clustering compares them: about a centre, along chosen directions, of length 1.

A row's numbers do not depend on which rows it is computed with: products are taken in tiles of one size.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

TILE_ROWS = 512


class Preparation(NamedTuple):
    """What is done to rows: z = (x - mean) directions', then z / |z| where lengths are to go."""

    mean: Float64[Tensor, " feature"]
    directions: Float64[Tensor, "component feature"] | None
    """None: features stay as they are."""
    unit_length: bool


def prepared_rows(
    x: Float[Tensor, "row feature"], preparation: Preparation
) -> Float64[Tensor, "row component"]:
    """Rows ready to be compared; those without length stay zeros.

    A length below 1e-12 of the row's own is rounding, and counts as none; along directions that are scaled, it is measured as if they had
    length 1.

    Cost: 2 row feature component flops where there are directions.
    """
    mean, directions, unit_length = preparation
    if directions is None and not unit_length:
        return x.double() - mean
    width = x.shape[1] if directions is None else len(directions)
    out = x.new_empty((len(x), width), dtype=torch.float64)
    for start in range(0, len(x), TILE_ROWS):
        some = x[start : start + TILE_ROWS].double()
        z = some - mean if directions is None else mapped(some - mean, directions.T)
        out[start : start + TILE_ROWS] = _unit(z, some, preparation) if unit_length else z
    return out


def mapped(
    rows: Float64[Tensor, "row feature"], matrix: Float64[Tensor, "feature component"]
) -> Float64[Tensor, "row component"]:
    """rows matrix, where no row's numbers depend on the others. Cost: 2 row feature component flops."""
    pieces = []
    for some in torch.split(rows, TILE_ROWS):
        tile = rows.new_zeros(TILE_ROWS, rows.shape[1])
        tile[: len(some)] = some
        pieces.append((tile @ matrix)[: len(some)])
    return torch.cat(pieces)


def _unit(z: Tensor, x: Tensor, preparation: Preparation) -> Tensor:
    mean, directions, _ = preparation
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    along = z if directions is None else z / torch.linalg.vector_norm(directions, dim=1)
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True) + torch.linalg.vector_norm(mean)
    there = torch.linalg.vector_norm(along, dim=1, keepdim=True) > 1e-12 * size
    unit: Tensor = torch.where(there, z / torch.where(there, length, 1.0), 0.0)
    return unit

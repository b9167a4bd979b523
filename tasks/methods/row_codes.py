"""Rows in a basis, what their codes leave of them, and how far off runs of them are: shared by methods that code rows.

A carry holds `components` [component, feature], orthonormal, and `mean` [feature]; `step`, of codes; `drift` [component], by which squares
of coordinates are weighed; `block_rows` and `blocks`. All floats are float64. With `shape` rows are divided by their length.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.methods.contract import Block, State

TILE_ROWS = 512
"""Rows are multiplied in tiles of exactly this size, filled up with zeros, so that no bit depends on how rows are cut."""


class Seen(NamedTuple):
    """Rows in the basis."""

    coordinates: Tensor
    """float64 [row, component]: of what is coded."""
    length: Tensor
    """float64 [row]: what a decoded row is multiplied by; a float32 number."""
    outside: Tensor
    """float64 [row]: squared length of what lies outside of the basis."""


def seen(rows: Tensor, carry: State, shape: bool, beside: bool = True) -> Seen:
    """Rows [row, feature] in the basis, each alone: whatever is beside it, its bits are the same.

    Args:
        rows: any number of them.
        carry: as above.
        shape: divide rows by their length.
        beside: whether what lies outside of the basis is wanted, which takes a second product; else it is said to be 0.
    """
    tiles = [_tile(tile, carry, shape, beside) for tile in torch.split(rows, TILE_ROWS)]
    return Seen(*(torch.cat(parts) for parts in zip(*tiles, strict=True)))


def squared_error(found: Seen, code: Tensor, carry: State) -> Tensor:
    """[row]: squared distance of decoded rows; the components are orthonormal."""
    off = found.coordinates - code.double() * carry["step"]
    tiles = [_whole(tile).square().sum(1)[: len(tile)] for tile in torch.split(off, TILE_ROWS)]
    return (torch.cat(tiles) + found.outside) * found.length.square()


def by_block(
    block: Block, outputs: dict[str, Tensor], coordinates: Tensor, carry: State, shape: bool
) -> Tensor:
    """float64 [block, 4]: sums of rows, of their squared errors, of what these are measured by, and of surprises.

    What is left of the rows after whole blocks belongs to the last: a block of few rows would be far off by chance.
    """
    error = outputs["error"].double().square()
    if shape:
        squared = outputs["length"].double().square()
        energy = (squared > 0).double()
        error = torch.where(squared > 0, error / torch.where(squared > 0, squared, 1.0), 0.0)
    else:
        energy = (block["x"].double() - carry["mean"]).square().sum(1)
    surprise = coordinates.square() @ carry["drift"]
    sums = torch.stack([torch.ones_like(error), error, energy, surprise], dim=1)
    number = torch.div(block.index, carry["block_rows"], rounding_mode="floor")
    n_blocks = int(carry["blocks"])
    return sums.new_zeros(n_blocks, 4).index_add_(0, number.clamp(max=n_blocks - 1), sums)


def unlike(x: Tensor, outputs: dict[str, Tensor], code: Tensor, carry: State) -> Tensor:
    """[row that has a length]: 1 less the cosine of row and decoded row, without cancellation; 1 where that is zero."""
    decoded, mean = code.double() * carry["step"], carry["mean"]
    along = 2 * (decoded @ (carry["components"] @ mean)) + mean.square().sum()
    after = outputs["length"].double() * (decoded.square().sum(1) + along).clamp(min=0).sqrt()
    before = torch.linalg.vector_norm(x.double(), dim=1)
    apart = (outputs["error"].double().square() - (before - after).square()).clamp(min=0)
    found = torch.where(after > 0, apart / torch.where(after > 0, 2 * before * after, 1.0), 1.0)
    return found[before > 0].clamp(max=2)


def _tile(rows: Tensor, carry: State, shape: bool, beside: bool) -> Seen:
    """At most TILE_ROWS rows in the basis, and zeros up to as many."""
    given = _whole(rows.double())
    length = (
        torch.linalg.vector_norm(given, dim=1).float().double() if shape else torch.ones_like(given[:, 0])
    )
    unit = torch.where(length > 0, length, 1.0)[:, None]
    centred = torch.where(length[:, None] > 0, given / unit - carry["mean"], 0.0)
    components = carry["components"]
    coordinates = centred @ components.T
    outside = torch.zeros_like(length)
    if beside and len(components) < components.shape[1]:
        outside = (centred - coordinates @ components).square().sum(1)
    return Seen(coordinates[: len(rows)], length[: len(rows)], outside[: len(rows)])


def _whole(rows: Tensor) -> Tensor:
    """A tile filled up with zeros."""
    return F.pad(rows, (0, 0, 0, TILE_ROWS - len(rows)))

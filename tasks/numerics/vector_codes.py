"""Rows told by the numbers of vectors in codebooks: each run of features by the nearest of its part's vectors (product quantisation).

A row x is told as bias + gain (mean + R^T y), where y lies side by side in parts, each one vector of that part's codebook. Without a
scale gain is 1 and bias 0; with `gain` rows are divided by their length; with `gain_bias` the mean of their features is taken off first.

Rows are taken in tiles of one shape, so that no bit depends on which rows they are computed with.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import MethodError
from tasks.numerics.largest_products import TILE_ROWS

COLUMNS = 48
"""Vectors are taken so many at a time, as rows are: those left over by the kernels of products would have other last digits, and of equal
vectors not the first would be named."""
Scale = Literal["none", "gain", "gain_bias"]
Parts = Float64[Tensor, "row part place"]
Centres = Float64[Tensor, "part code place"]


class Codebooks(NamedTuple):
    """Of all parts, with what rows go through before they are cut."""

    centre: Centres
    """The places of the last part that no feature fills are zeros."""
    mean: Float64[Tensor, " feature"]
    rotation: Float64[Tensor, "component feature"]
    """Orthogonal; without rows where features stay as they are."""
    scale: Scale


class Placed(NamedTuple):
    """Rows cut into parts."""

    parts: Parts
    gain: Float64[Tensor, " row"]
    """A float32 number, as `bias` is."""
    bias: Float64[Tensor, " row"]


class Coded(NamedTuple):
    """What is told of rows."""

    code: Int64[Tensor, "row part"]
    gain: Float64[Tensor, " row"]
    bias: Float64[Tensor, " row"]
    squared_error: Float64[Tensor, " row"]


def placed(rows: Float[Tensor, "row feature"], books: Codebooks) -> Placed:
    """Rows without their scale, centred, turned and cut into parts; rows without length are as far from the mean as the origin is.

    Cost: 2 feature^2 flops a row where there is a rotation.
    """
    tiles = [_placed(tile, books, n) for tile, n in _tiles(rows.double())]
    return Placed(*(torch.cat(values) for values in zip(*tiles, strict=True)))


def nearest(parts: Parts, centre: Centres) -> Int64[Tensor, "row part"]:
    """The nearest vector of each part; of equals the first.

    Cost: 2 row part code place flops; memory for one tile of one part.
    """
    free = -centre.shape[1] % COLUMNS
    half = F.pad(centre.square().sum(2) / 2, (0, free), value=torch.inf)
    columns = F.pad(centre, (0, 0, 0, free)).transpose(1, 2).contiguous()
    found = []
    for tile, n in _tiles(parts):
        each = [(tile[:, m].contiguous() @ columns[m] - half[m]).argmax(1) for m in range(len(centre))]
        found.append(torch.stack(each, 1)[:n])
    return torch.cat(found)


def chosen(code: Int64[Tensor, "row part"] | UInt8[Tensor, "row part"], centre: Centres) -> Parts:
    """The vectors that codes name."""
    each = torch.arange(len(centre), device=centre.device)
    return centre[each, code.long()]


def coded(rows: Float[Tensor, "row feature"], books: Codebooks) -> Coded:
    """Codes, scales and squared errors of rows.

    Cost: that of `placed` and `nearest`.
    """
    at = placed(rows, books)
    code = nearest(at.parts, books.centre)
    off = [tile.square().flatten(1).sum(1)[:n] for tile, n in _tiles(at.parts - chosen(code, books.centre))]
    return Coded(code, at.gain, at.bias, torch.cat(off) * at.gain.square())


def decoded(
    code: Int64[Tensor, "row part"] | UInt8[Tensor, "row part"],
    gain: Float64[Tensor, " row"],
    bias: Float64[Tensor, " row"],
    books: Codebooks,
) -> Float64[Tensor, "row feature"]:
    """Rows from what is told of them."""
    y = chosen(code, books.centre).flatten(1)[:, : len(books.mean)]
    shape = (y @ books.rotation if len(books.rotation) else y) + books.mean
    return bias[:, None] + gain[:, None] * shape


def asymmetric(
    query: Float[Tensor, "query feature"],
    code: Int64[Tensor, "row part"] | UInt8[Tensor, "row part"],
    books: Codebooks,
) -> Float64[Tensor, "query row"]:
    """Squared distances of exact rows from decoded ones, of codebooks without a scale: sums of a table's entries, without decoding.

    Jegou, Douze, Schmid, IEEE Transactions on Pattern Analysis and Machine Intelligence 33 (2011) 117, equation 13.

    Raises:
        MethodError: for codebooks with a scale, whose rows lie at other places than their vectors.

    Cost: 3 query feature code flops for the table, then query row part additions.
    """
    if books.scale != "none":
        raise MethodError(
            f"codebooks have the scale {books.scale!r}, distances from codes alone need `none`; decode the rows"
        )
    at = placed(query, books).parts
    found = at.new_zeros(len(query), len(code))
    for m, centre in enumerate(books.centre):
        table = (at[:, m, None] - centre).square().sum(2)
        found += table[:, code[:, m].long()]
    return found


def perplexity(count: Int64[Tensor, "part code"]) -> Float64[Tensor, " part"]:
    """2 to the entropy of how often each vector is used: as many as there are where all are used alike, 1 where one is."""
    share = count.double() / count.sum(1, keepdim=True).clamp(min=1)
    found: Tensor = torch.special.entr(share).sum(1).exp()
    return found


def cut(rows: Float64[Tensor, "row feature"], books: Centres) -> Parts:
    """Features side by side into parts as wide as the codebooks', zeros behind the last."""
    parts, _, place = books.shape
    return F.pad(rows, (0, parts * place - rows.shape[1])).reshape(len(rows), parts, place)


def _placed(tile: Tensor, books: Codebooks, n: int) -> tuple[Tensor, Tensor, Tensor]:
    bias, gain = tile.new_zeros(len(tile)), tile.new_ones(len(tile))
    if books.scale == "gain_bias":
        bias = tile.mean(1).float().double()
    if books.scale != "none":
        tile = tile - bias[:, None]
        gain = torch.linalg.vector_norm(tile, dim=1).float().double()
        tile = tile / torch.where(gain > 0, gain, 1.0)[:, None]
    centred = tile - books.mean
    turned = centred @ books.rotation.T if len(books.rotation) else centred
    return cut(turned, books.centre)[:n], gain[:n], bias[:n]


def _tiles(rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Tiles filled up with zeros, and how many rows of them are real; one without rows where there are none."""
    for tile in torch.split(rows, TILE_ROWS):
        whole = tile.new_zeros(TILE_ROWS, *tile.shape[1:])
        whole[: len(tile)] = tile
        yield whole, len(tile)

"""Exact k nearest neighbours in blocks, Euclidean, with distances that are computed from differences.

A product of matrices gives |x - y|^2 = |x|^2 + |y|^2 - 2 x.y fast but with cancellation, so it only chooses
candidates. Rows are first moved to a common centre; then the product errs by at most

    e = (feature + 8) (2^-24 (|x| + |y|)^2 + 2^-126)        (float32 products, worst case of a dot product)

The k + PAD smallest products of a row, less if fewer can matter, are computed again as differences in
float64. If the next product minus its error still exceeds the k-th true distance, nothing can have been
missed. Otherwise every column that could matter is computed again. So the answer is that of computing all
differences, for any blocks; ties go to the smaller index.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

PAD = 8
"""Candidates beyond k that are computed exactly."""
UNIT, TINY = 2.0**-24, 2.0**-126
"""Rounding of float32, and the least number that it holds in full."""


class Sizes(NamedTuple):
    """How much is worked on at once. No result depends on it."""

    rows: int
    columns: int
    differences: int
    """Numbers, 8 bytes each."""


ON_CPU, ELSEWHERE = Sizes(256, 8192, 1 << 18), Sizes(4096, 16384, 1 << 26)
"""Differences stay in a core's cache; other devices want large pieces."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows found so far, nearest first."""

    distance: Float64[Tensor, "row k"]
    """Infinite where fewer than k rows have been seen."""
    index: Int64[Tensor, "row k"]
    """-1 where fewer than k rows have been seen."""


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
) -> Neighbours:
    """The nearest of what was found and of y; a row is no neighbour of itself.

    Args:
        found: the neighbours of x so far.
        x: rows of any floating dtype.
        x_index: what x's rows are called.
        y: rows that may be neighbours.
        y_index: what y's rows are called; each name is seen in one call only.

    Cost: 2 row column feature flops in float32, and row (k + 8) feature differences in float64 per 8192
        columns.
    """
    if len(x) == 0 or len(y) == 0:
        return found
    frame, best, sizes = _frame(x, y), Neighbours(found.distance.clone(), found.index.clone()), _sizes(x)
    for left in range(0, len(y), sizes.columns):
        columns = slice(left, left + sizes.columns)
        right = _side(y[columns], y_index[columns], frame)
        for low in range(0, len(x), sizes.rows):
            rows = slice(low, low + sizes.rows)
            before = Neighbours(best.distance[rows], best.index[rows])
            after = _tile(before, _side(x[rows], x_index[rows], frame), right, frame.scale)
            best.distance[rows], best.index[rows] = after.distance, after.index
    return best


def distances(
    x: Float[Tensor, "row feature"], y: Float[Tensor, "row candidate feature"]
) -> Float64[Tensor, "row candidate"]:
    """|x_i - y_ij|, from differences in float64."""
    return (y.double() - x.double()[:, None, :]).square_().sum(-1).sqrt_()


def _sizes(tensor: Tensor) -> Sizes:
    return ON_CPU if tensor.device.type == "cpu" else ELSEWHERE


class _Frame(NamedTuple):
    """Where products are taken: about x's mean, scaled by a power of two that keeps float32 from overflow."""

    centre: Tensor
    scale: float


class _Side(NamedTuple):
    """Rows, what they are called, and their float32 copies in the frame with their norms."""

    rows: Tensor
    name: Tensor
    scaled: Tensor
    norm: Tensor


def _frame(x: Tensor, y: Tensor) -> _Frame:
    centre = x.double().mean(0)
    largest = max(float((values.amax(0) - centre).abs().max()) for values in (x, -x, y, -y))
    largest = max(largest, float(centre.abs().max()))
    return _Frame(centre, 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0)


def _side(rows: Tensor, index: Tensor, frame: _Frame) -> _Side:
    scaled = ((rows.double() - frame.centre) * frame.scale).float()
    return _Side(rows, index, scaled, torch.linalg.vector_norm(scaled, dim=1))


def _tile(found: Neighbours, x: _Side, y: _Side, scale: float) -> Neighbours:
    """Neighbours of a few rows after a few columns."""
    k = found.distance.shape[1]
    low = _lowest(x, y)
    useful = (low <= _reach(found, scale)[:, None]).sum(1)
    n = min(k + PAD, len(y.rows), int(useful.max()))
    if n == 0:
        return found
    least, column = torch.topk(low, n, dim=1, largest=False)
    merged = _smallest(found, _refine(x, y, column), k)
    sure: Bool[Tensor, " row"] = (useful <= n) | (least[:, -1] > _reach(merged, scale))
    for row in torch.nonzero(~sure).flatten().tolist():
        _redo(merged, row, found, x, y, torch.nonzero(low[row] <= _reach(merged, scale)[row]).flatten())
    return merged


def _lowest(x: _Side, y: _Side) -> Tensor:
    """What each squared distance in the frame is at least; infinite for a row and itself."""
    width = x.rows.shape[1] + 8
    square = torch.addmm(y.norm.square()[None, :], x.scaled, y.scaled.T, alpha=-2).add_(
        x.norm.square()[:, None]
    )
    error = (x.norm[:, None] + y.norm[None, :]).square_().mul_(width * UNIT).add_(width * TINY)
    return square.sub_(error).masked_fill_(x.name[:, None] == y.name[None, :], torch.inf)


def _reach(found: Neighbours, scale: float) -> Tensor:
    """The square of the k-th distance in the frame, rounded up to float32."""
    return (found.distance[:, -1] * scale).square().float().mul_(1 + 4 * UNIT)


def _refine(x: _Side, y: _Side, column: Tensor) -> Neighbours:
    """True distances to the chosen columns of each row."""
    step = max(1, _sizes(column).differences // (column.shape[1] * max(1, x.rows.shape[1])))
    pieces = range(0, len(x.rows), step)
    found = [distances(x.rows[low : low + step], y.rows[column[low : low + step]]) for low in pieces]
    return _without_self(torch.cat(found), y.name[column], x.name)


def _redo(merged: Neighbours, row: int, found: Neighbours, x: _Side, y: _Side, column: Tensor) -> None:
    """Compute all columns that could be among the nearest of one row; changes `merged` in place."""
    k = merged.distance.shape[1]
    one = slice(row, row + 1)
    best, own = Neighbours(found.distance[one], found.index[one]), _Side(*(part[one] for part in x))
    for chosen in torch.split(column, max(2, _sizes(column).differences // max(1, x.rows.shape[1]))):
        best = _smallest(best, _refine(own, y, chosen[None, :]), k)
    merged.distance[row], merged.index[row] = best.distance[0], best.index[0]


def _without_self(distance: Tensor, index: Tensor, x_index: Tensor) -> Neighbours:
    own = index == x_index[:, None]
    return Neighbours(distance.masked_fill(own, torch.inf), index.masked_fill(own, -1))


def _smallest(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """The k nearest of both; equal distances in order of index, absent ones last."""
    distance = torch.cat([a.distance, b.distance], dim=1)
    index = torch.cat([a.index, b.index], dim=1)
    order = torch.argsort(index, dim=1, stable=True)
    distance, index = distance.gather(1, order), index.gather(1, order)
    order = torch.argsort(distance, dim=1, stable=True)[:, :k]
    return Neighbours(distance.gather(1, order), index.gather(1, order))

"""Exact k nearest neighbours in blocks, Euclidean, with distances that are computed from differences.

A product of matrices gives |x - y|^2 = |x|^2 + |y|^2 - 2 x.y fast but with cancellation, so it only chooses
candidates. Rows are first moved to a common centre and scaled; then, with c = (feature + 12) 2^-24 for float32
products (worst case of a dot product) and w = (feature + 12) 2^-126,

    |x - y|^2 >= (1 - 2 c) (|x|^2 + |y|^2) - 2 x.y - w

The part that depends on x alone goes into the limit below which a column could matter. Where few could, all of
these are computed again as differences in float64. Elsewhere the k + PAD smallest products are; if the next one
still exceeds the limit, nothing can have been missed, and otherwise every column that could matter is computed
again. So the answer is that of computing all differences, for any blocks; ties go to the smaller index.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

PAD = 8
"""Candidates beyond k that are computed exactly."""
SLACK = 12
"""Roundings of a product beside one per feature."""
UNIT, TINY = 2.0**-24, 2.0**-126
"""Rounding of float32, and the least number that it holds in full."""


class Sizes(NamedTuple):
    """How much is worked on at once. No result depends on it."""

    rows: int
    columns: int
    differences: int
    """Numbers, 8 bytes each."""


ON_CPU, ELSEWHERE = Sizes(384, 32768, 1 << 17), Sizes(4096, 16384, 1 << 26)
"""Products (50 MB) of many columns leave few candidates, whose differences stay in a core's cache; other devices want large pieces."""


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

    Cost: 2 row column feature flops in float32, and at most row (k + 8) feature differences in float64 per 32,768
        columns, fewer the more columns were seen before.
    """
    if len(x) == 0 or len(y) == 0:
        return found
    frame, best, sizes = frame_of(x, y), Neighbours(found.distance.clone(), found.index.clone()), sizes_of(x)
    of_x, of_y = (None, None) if classes is None else classes
    room = torch.empty(
        min(sizes.rows, len(x)) * min(sizes.columns, len(y)), dtype=torch.float32, device=x.device
    )
    for left in range(0, len(y), sizes.columns):
        columns = slice(left, left + sizes.columns)
        right = side_of(y, y_index, of_y, columns, frame)
        for low in range(0, len(x), sizes.rows):
            rows = slice(low, low + sizes.rows)
            before = Neighbours(best.distance[rows], best.index[rows])
            after = _tile(before, side_of(x, x_index, of_x, rows, frame), right, frame.scale, room)
            best.distance[rows], best.index[rows] = after.distance, after.index
    return best


def distances(
    x: Float[Tensor, "row feature"], y: Float[Tensor, "row candidate feature"]
) -> Float64[Tensor, "row candidate"]:
    """|x_i - y_ij|, from differences in float64."""
    return (y - x.double()[:, None, :]).square_().sum(-1).sqrt_()


def sizes_of(tensor: Tensor) -> Sizes:
    """For the device of a tensor."""
    return ON_CPU if tensor.device.type == "cpu" else ELSEWHERE


class Frame(NamedTuple):
    """Where products are taken: about x's mean, scaled by a power of two that keeps float32 from overflow."""

    centre: Tensor
    scale: float


class Side(NamedTuple):
    """Rows, what they are called, their classes, where these are apart, and their float32 copies in the frame."""

    rows: Tensor
    name: Tensor
    group: Tensor | None
    scaled: Tensor
    square: Tensor
    """float64: what the rows' own squares add to a bound."""


def frame_of(x: Tensor, y: Tensor) -> Frame:
    """About x's mean, with all numbers of x and y below 1."""
    centre = x.double().mean(0)
    largest = max(float((values.amax(0) - centre).abs().max()) for values in (x, -x, y, -y))
    largest = max(largest, float(centre.abs().max()))
    return Frame(centre, 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0)


def side_of(x: Tensor, index: Tensor, group: Tensor | None, which: slice, frame: Frame) -> Side:
    """Some rows in the frame."""
    rows = x[which]
    scaled = ((rows.double() - frame.centre) * frame.scale).float()
    square = torch.linalg.vector_norm(scaled, dim=1, dtype=torch.float64).square()
    part = square * (1 - 2 * (rows.shape[1] + SLACK) * UNIT)
    return Side(rows, index[which], None if group is None else group[which], scaled, part)


def _tile(found: Neighbours, x: Side, y: Side, scale: float, room: Tensor) -> Neighbours:
    """Neighbours of a few rows after a few columns."""
    k = found.distance.shape[1]
    low, limit = lower_bounds(x, y, room), _limit(found, x, scale)
    most = min(k + PAD, len(y.rows))
    useful = low <= limit[:, None] if bool(torch.isfinite(limit).all()) else None
    if useful is not None and int(torch.count_nonzero(useful)) <= most * len(x.rows):
        return _smallest(found, _listed(x, y, torch.nonzero(useful)), k)
    least, column = torch.topk(low, most, dim=1, largest=False)
    merged = _smallest(found, _refine(x, y, column), k)
    sure: Bool[Tensor, " row"] = least[:, -1] > _limit(merged, x, scale)
    for row in [] if most == len(y.rows) else torch.nonzero(~sure).flatten().tolist():
        _redo(merged, row, found, x, y, torch.nonzero(low[row] <= _limit(merged, x, scale)[row]).flatten())
    return merged


def lower_bounds(x: Side, y: Side, room: Tensor) -> Tensor:
    """What each squared distance in the frame is at least, but for the part of x; infinite for a row and itself, or its class."""
    low = room[: len(x.rows) * len(y.rows)].view(len(x.rows), len(y.rows))
    torch.addmm(y.square.float()[None, :], x.scaled, y.scaled.T, alpha=-2, out=low)
    if x.group is not None and y.group is not None:
        return low.masked_fill_(x.group[:, None] == y.group[None, :], torch.inf)
    order = torch.argsort(x.name)
    place = torch.searchsorted(x.name[order], y.name).clamp_(max=len(order) - 1)
    column = torch.nonzero(x.name[order[place]] == y.name).flatten()
    low[order[place[column]], column] = torch.inf
    return low


def _limit(found: Neighbours, x: Side, scale: float) -> Tensor:
    """What `lower_bounds` may be at most for a column to matter: from the k-th distance, rounded up to float32."""
    reach = (found.distance[:, -1] * scale).square() * (1 + UNIT) - x.square
    return torch.nextafter(
        (reach + (x.rows.shape[1] + SLACK) * TINY).float(), reach.new_tensor(torch.inf).float()
    )


def _listed(x: Side, y: Side, pairs: Tensor) -> Neighbours:
    """True distances of some pairs of a row and a column, sorted by row; [row, most of a row]."""
    row, column = pairs.unbind(1)
    step = max(1, sizes_of(pairs).differences // max(1, x.rows.shape[1]))
    pieces = [slice(low, low + step) for low in range(0, len(row), step)]
    found = [distances(x.rows[row[p]], y.rows[column[p]][:, None])[:, 0] for p in pieces]
    count = torch.bincount(row, minlength=len(x.rows))
    place = torch.arange(len(row), device=row.device) - (torch.cumsum(count, 0) - count)[row]
    merged = none_yet(len(x.rows), int(count.max()), row.device)
    merged.distance[row, place] = torch.cat(found) if found else merged.distance.new_empty(0)
    merged.index[row, place] = y.name[column]
    return merged


def _refine(x: Side, y: Side, column: Tensor) -> Neighbours:
    """True distances to the chosen columns of each row."""
    step = max(1, sizes_of(column).differences // (column.shape[1] * max(1, x.rows.shape[1])))
    pieces = range(0, len(x.rows), step)
    found = [distances(x.rows[low : low + step], y.rows[column[low : low + step]]) for low in pieces]
    own = y.name[column] == x.name[:, None]
    if x.group is not None and y.group is not None:
        own = y.group[column] == x.group[:, None]
    return Neighbours(torch.cat(found).masked_fill(own, torch.inf), y.name[column].masked_fill(own, -1))


def _redo(merged: Neighbours, row: int, found: Neighbours, x: Side, y: Side, column: Tensor) -> None:
    """Compute all columns that could be among the nearest of one row; changes `merged` in place."""
    k = merged.distance.shape[1]
    one = slice(row, row + 1)
    group = None if x.group is None else x.group[one]
    own = Side(x.rows[one], x.name[one], group, x.scaled[one], x.square[one])
    best = Neighbours(found.distance[one], found.index[one])
    for chosen in torch.split(column, max(2, sizes_of(column).differences // max(1, x.rows.shape[1]))):
        best = _smallest(best, _refine(own, y, chosen[None, :]), k)
    merged.distance[row], merged.index[row] = best.distance[0], best.index[0]


def _smallest(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """The k nearest of both; equal distances in order of index, absent ones last."""
    distance = torch.cat([a.distance, b.distance], dim=1)
    index = torch.cat([a.index, b.index], dim=1)
    order = torch.argsort(index, dim=1, stable=True)
    distance, index = distance.gather(1, order), index.gather(1, order)
    order = torch.argsort(distance, dim=1, stable=True)[:, :k]
    return Neighbours(distance.gather(1, order), index.gather(1, order))

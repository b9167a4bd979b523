"""Lower bounds of squared distances by products of matrices in float32, and distances themselves by differences in float64.

A product gives |x - y|^2 = |x|^2 + |y|^2 - 2 x.y fast but with cancellation. Rows are first moved to a common centre and scaled; then, with
c = (feature + 12) 2^-24, which is more than the worst case of a dot product in float32 in any order, `allowance` a = 2 c / (1 - c) and
`least` w = (feature + 12) 2^-123,

    low - w <= |x - y|^2 <= low + 2 a (|x|^2 + |y|^2) + w,    low = (1 - a) (|x|^2 + |y|^2) - 2 x.y

in whatever order the sum is taken, so that it serves a pair from both sides. Both inequalities leave 7 2^-24 of the squared distance to
spare: they tell apart what float64 rounds. In a frame with directions the first one holds, as coordinates are no further apart than rows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from tasks.numerics.distances import refuse_huge

SLACK = 12
"""Roundings of a product beside one per feature."""
SMALL = 2.0**-480
"""Distances whose squares are near the least numbers of float64."""
UNIT, TINY = 2.0**-24, 2.0**-123
"""Rounding of float32, and a few of the least numbers that it holds in full."""


class Sizes(NamedTuple):
    """How much is worked on at once. No result depends on it."""

    rows: int
    columns: int
    differences: int
    """Numbers, 8 bytes each."""


ON_CPU, ELSEWHERE = Sizes(1024, 2048, 1 << 17), Sizes(4096, 16384, 1 << 26)
"""Bounds (8 MB) and differences that stay in a processor's caches; other devices want large pieces."""


class Frame(NamedTuple):
    """Where products are taken: about x's mean, scaled by a power of two that keeps float32 from overflow."""

    centre: Tensor
    scale: float
    directions: Float64[Tensor, "feature direction"] | None = None
    """Orthonormal: coordinates are those along these, and the length of the rest (see `bound_directions`); all features without."""


class Side(NamedTuple):
    """Rows, what they are called, their classes where these are apart, and what products are taken of."""

    rows: Tensor
    name: Tensor
    group: Tensor | None
    scaled: Float32[Tensor, "row coordinate"]
    """The rows in the frame."""
    square: Float64[Tensor, " row"]
    """|x|^2 there."""
    share: Float32[Tensor, " row"]
    """(1 - a) |x|^2: their part of a bound."""

    def part(self, which: slice | Tensor) -> "Side":
        """Some of the rows."""
        group = None if self.group is None else self.group[which]
        return Side(
            self.rows[which],
            self.name[which],
            group,
            self.scaled[which],
            self.square[which],
            self.share[which],
        )


def sizes_of(tensor: Tensor) -> Sizes:
    """For the device of a tensor."""
    return ON_CPU if tensor.device.type == "cpu" else ELSEWHERE


def allowance(features: int) -> float:
    """What a bound leaves of |x|^2 + |y|^2 for rounding."""
    share = (features + SLACK) * UNIT
    return 2 * share / (1 - share)


def least(features: int) -> float:
    """What squared distances may differ by because float32 holds no smaller numbers."""
    return (features + SLACK) * TINY


def frame_of(x: Float[Tensor, "row feature"], y: Float[Tensor, "column feature"]) -> Frame:
    """About x's mean, with all numbers of x and y below 1.

    Raises:
        MethodError: for numbers whose differences and sums might overflow.
    """
    both = (x,) if y is x else (x, y)
    ends = [end.double() for values in both for end in (values.amin(0), values.amax(0))]
    refuse_huge(max(float(end.abs().max()) for end in ends))
    centre = x.mean(0, dtype=torch.float64)
    largest = max(float((end - centre).abs().max()) for end in [*ends, 2 * centre])
    return Frame(centre, 2.0 ** -max(math.frexp(largest)[1], -1000) if largest > 0 else 1.0)


def side_of(rows: Tensor, name: Tensor, group: Tensor | None, frame: Frame) -> Side:
    """Rows in the frame: a copy in float32."""
    width = rows.shape[1] if frame.directions is None else frame.directions.shape[1] + 1
    scaled = torch.empty(len(rows), width, dtype=torch.float32, device=rows.device)
    square = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    step = max(1, sizes_of(rows).differences // max(1, rows.shape[1]))
    for low in range(0, len(rows), step):
        piece = slice(low, low + step)
        exact = (rows[piece] - frame.centre).mul_(frame.scale)
        if frame.directions is not None:
            exact = _along(exact, frame.directions)
        scaled[piece] = exact
        square[piece] = exact.copy_(scaled[piece]).square_().sum(1)
    return Side(rows, name, group, scaled, square, (square * (1 - allowance(width))).float())


def _along(rows: Float64[Tensor, "row feature"], directions: Tensor) -> Float64[Tensor, "row coordinate"]:
    """Coordinates of rows, which are lost, and the length of the rest."""
    coordinates = rows @ directions
    rest = torch.linalg.vector_norm(rows.addmm_(coordinates, directions.T, alpha=-1), dim=1)
    return torch.cat([coordinates, rest[:, None]], 1)


def lower_bounds(x: Side, y: Side, out: Float32[Tensor, "row column"]) -> Float32[Tensor, "row column"]:
    """`low` for all pairs, into `out`.

    Cost: 2 row column feature flops; in float64 where the process multiplies float32 with fewer digits, which the bounds do not allow for.
    """
    torch.add(x.share[:, None], y.share, out=out)
    if _coarse(out):
        return out.copy_(torch.addmm(out.double(), x.scaled.double(), y.scaled.T.double(), alpha=-2))
    return torch.addmm(out, x.scaled, y.scaled.T, alpha=-2, out=out)


def _coarse(tensor: Tensor) -> bool:
    """Whether products of float32 are taken in TF32 or bfloat16, as networks may have asked for the whole process."""
    backend = torch.backends.mkldnn if tensor.device.type == "cpu" else torch.backends.cuda
    return backend.matmul.fp32_precision in ("tf32", "bf16")


def distances(
    x: Float[Tensor, "row feature"],
    y: Float[Tensor, "column feature"],
    row: Int64[Tensor, " pair"],
    column: Int64[Tensor, " pair"],
) -> Float64[Tensor, " pair"]:
    """|x_row - y_column| of pairs, from differences in float64; scaled first where squares would overflow or be nothing."""
    found = torch.empty(len(row), dtype=torch.float64, device=x.device)
    step = max(1, sizes_of(x).differences // max(1, x.shape[1]))
    room = torch.zeros(max(2, min(step, len(row))), x.shape[1], dtype=torch.float64, device=x.device)
    for low in range(0, len(row), step):
        piece = slice(low, low + step)
        n = len(row[piece])
        room[:n].copy_(y.index_select(0, column[piece])).sub_(x.index_select(0, row[piece])).square_()
        found[piece] = room[: max(2, n)].sum(1)[
            :n
        ]  # threads share the sum of a single row, with other roundings
    found.sqrt_()
    again = torch.nonzero((found < SMALL) | (found == torch.inf)).flatten()
    for some in torch.split(again, step) if len(again) else ():
        apart = y.index_select(0, column[some]).double() - x.index_select(0, row[some])
        largest = apart.abs().amax(1) if apart.shape[1] else apart.new_zeros(len(some))
        length = torch.linalg.vector_norm(apart / largest.where(largest > 0, 1.0)[:, None], dim=1)
        found[some] = length * largest
    return found

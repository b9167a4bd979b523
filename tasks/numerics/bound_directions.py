"""Few directions that hold most of the rows' differences: bounds of distances from their coordinates cost a fraction of a product.

With orthonormal directions Q and r the length of what lies outside of them, |Q'x - Q'y|^2 + (r_x - r_y)^2 is never more than |x - y|^2. So
any directions give bounds that hold, and the choice here decides about time alone: those of a ladder with which products, and the columns
whose bounds do not rule them out, cost least, found out on some rows and columns; none where all features do.
"""

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

LEAST_PAIRS = 1 << 26
"""From so many pairs on the trial is a small part of the search."""
LADDER = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GOLDEN = (5**0.5 - 1) / 2
"""Whose multiples meet no period."""
SAMPLE, PROBES, COLUMNS = 512, 32, 4096
"""Rows that span the directions; rows that try them, and columns they meet."""
LOOKING, DIFFERENCE = 100, 150
"""Cost of looking at a bound, and of a feature's difference in float64, in products of one feature on one thread of a processor."""
GAIN = 0.8
"""Directions must cost less than this share of a search with all features, as they do not gain on all of it."""


def directions_of(
    x: Float[Tensor, "row feature"],
    y: Float[Tensor, "column feature"],
    centre: Float64[Tensor, " feature"],
    scale: float,
    k: int,
) -> Float64[Tensor, "feature direction"] | None:
    """Orthonormal directions for a search of the k nearest columns; None where a search with all features costs less.

    Args:
        x: rows of any floating dtype.
        y: columns.
        centre: is taken off.
        scale: by which all is multiplied then.
        k: neighbours wanted.

    Cost: the singular vectors of 512 rows, and a product of 4096 rows with 256 directions.
    """
    width = x.shape[1]
    ladder = [r for r in LADDER if 3 * r <= width]
    if len(x) * len(y) < LEAST_PAIRS or not ladder:
        return None
    sample, probes, columns = (
        ((rows[_spread(len(rows), most, start)] - centre) * scale).float()
        for rows, most, start in ((y, SAMPLE, 0.25), (x, PROBES, 0.5), (y, COLUMNS, 0.0))
    )
    basis = torch.linalg.svd(sample, full_matrices=False).Vh[: ladder[-1]].T
    share, once = len(columns) / len(y), 0.5 if y is x else 1.0
    place = min(len(columns), max(2, 1 + round(k * share)))  # a probe may be a column itself
    limit = torch.cdist(probes, columns).square_().kthvalue(place, dim=1, keepdim=True).values
    exact, best = DIFFERENCE * width, None
    least = GAIN * (len(y) * (once * width + LOOKING) + exact * k)
    for r in reversed(ladder):
        candidates = _open(probes, columns, basis[:, :r], limit) / share
        if exact * candidates >= least:
            break  # fewer directions leave more columns open
        cost = len(y) * (r + LOOKING) + exact * candidates
        if cost < least:
            least, best = cost, basis[:, :r]
    return None if best is None else torch.linalg.qr(best.double()).Q


def _spread(n: int, most: int, start: float) -> Int64[Tensor, " some"]:
    """Numbers of at most so many of n rows, one of each equal stretch, at changing places: rows may come in texts of one length."""
    count = min(n, most)
    edges = torch.arange(count + 1) * n // count
    inside = (torch.arange(count, dtype=torch.float64) * GOLDEN + start) % 1
    return edges[:-1] + (inside * edges.diff()).long()


def _open(
    x: Float32[Tensor, "row feature"],
    y: Float32[Tensor, "column feature"],
    directions: Float32[Tensor, "feature direction"],
    limit: Float32[Tensor, "row 1"],
) -> float:
    """How many columns directions do not rule out for a row, in the mean."""
    (a, r), (b, s) = (_split(rows, directions) for rows in (x, y))
    low = torch.cdist(a, b).square_() + (r[:, None] - s).square_()
    return float((low <= limit).sum(1).double().mean())


def _split(
    rows: Float32[Tensor, "row feature"], directions: Float32[Tensor, "feature direction"]
) -> tuple[Tensor, Tensor]:
    """Coordinates, and the length of the rest."""
    along = rows @ directions
    return along, (rows.square().sum(1) - along.square().sum(1)).clamp_(min=0).sqrt_()

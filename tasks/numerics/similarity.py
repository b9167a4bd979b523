"""Linear centred kernel alignment from the moments of paired rows."""

import math
from typing import NamedTuple

from torch import Tensor

from tasks.numerics import joint_moments

State = dict[str, Tensor]


class Alignment(NamedTuple):
    """Linear CKA of two sets of features over the same rows. NaN where a side does not vary."""

    biased: float
    """|X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius, of centred rows: in 0..1, near 1 when rows are fewer than
    features."""
    debiased: float
    """The same ratio of unbiased estimates: about 0 for unrelated rows however few; may be slightly negative.
    NaN for less than four rows."""


def linear_cka(state: State) -> Alignment:
    """Linear CKA, biased and debiased.

    Args:
        state: of `joint_moments`, over n rows.

    The unbiased estimate is that of the Hilbert-Schmidt criterion with a linear kernel, which for centred
    rows needs only moments: |X^T Y|^2 - n / (n - 2) sum |x|^2 |y|^2 + sum |x|^2 sum |y|^2 / ((n - 1)(n - 2)),
    over n (n - 3).

    Cost: O(feature^2).
    """
    about = joint_moments.centred(state)
    n, left, g = int(about["n"]), int(about["left"]), about["g"]
    cross, own_x, own_y = g[:left, left:], g[:left, :left], g[left:, left:]
    xy, xx, yy = (float(block.square().sum()) for block in (cross, own_x, own_y))
    biased = _ratio(xy, xx, yy)
    if n < 4:
        return Alignment(biased, math.nan)
    p, q, f = float(own_x.trace()), float(own_y.trace()), about["f"]
    unbiased = (
        _unbiased(xy, float(f[0, 1]), p * q, n),
        _unbiased(xx, float(f[0, 0]), p * p, n),
        _unbiased(yy, float(f[1, 1]), q * q, n),
    )
    return Alignment(biased, _ratio(*unbiased))


def _unbiased(product: float, fourth: float, traces: float, n: int) -> float:
    return (product - n / (n - 2) * fourth + traces / ((n - 1) * (n - 2))) / (n * (n - 3))


def _ratio(xy: float, xx: float, yy: float) -> float:
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else math.nan

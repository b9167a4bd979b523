"""Coefficients in steps of one size: integers, two bytes of them that are coded apart, and counts of bounded size.

An integer is `low + 256 high` with both in -127..127 or low -128: wherever |integer| <= 127 the high part is 0, and an array of zeros takes
next to no bytes. Splitting two's complement into its bytes instead would put the sign into the high one, a bit for each code.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int8, Int64
from torch import Tensor

from tasks.numerics import rate_distortion

LARGEST = 127 * 256 + 127
"""Largest magnitude of an integer; what lies beyond is clamped to it."""
HALF = 256
"""Bins on either side of zero in which a coefficient's codes are counted."""
FAR = 16
"""Standard deviations that the bins hold; what lies beyond is counted in the outermost."""
OCTAVES, PER_OCTAVE = 50, 16
"""Bins of distances between 2^-48 and 4: each is 4.4 % wide."""

Codes = Int64[Tensor, "row component"]
Bytes = Int8[Tensor, "row component"]


class Distances(NamedTuple):
    """Distances of rows, counted."""

    counts: Int64[Tensor, " bin"]
    total: Float64[Tensor, ""]
    """Their sum."""


def codes(coefficients: Float64[Tensor, "row component"], step: float) -> Codes:
    """The nearest multiple of the step to each coefficient, clamped to what two bytes hold."""
    return torch.round(coefficients / step).clamp(-LARGEST, LARGEST).long()


def split(code: Codes) -> tuple[Bytes, Bytes]:
    """Low and high parts."""
    low = torch.remainder(code + 128, 256) - 128
    return low.to(torch.int8), ((code - low) // 256).to(torch.int8)


def join(low: Bytes, high: Bytes) -> Codes:
    """What was split."""
    return low.long() + 256 * high.long()


def in_parts(
    coordinates: Float64[Tensor, "row component"],
    part: Int64[Tensor, " row"],
    components: Float64[Tensor, "part component feature"],
    mean: Float64[Tensor, "part feature"],
) -> Float64[Tensor, "row feature"]:
    """Rows from coordinates in the basis of the part that each has.

    Cost: 2 row component feature flops.
    """
    rows = coordinates.new_empty(len(part), mean.shape[1])
    for number in range(len(mean)):
        chosen = part == number
        rows[chosen] = coordinates[chosen] @ components[number] + mean[number]
    return rows


def bins(deviations: Float64[Tensor, " component"]) -> Int64[Tensor, " component"]:
    """How many codes each coefficient counts as one, so that its bins hold what is to be expected.

    Args:
        deviations: standard deviations of codes.
    """
    return torch.ceil(FAR * deviations / HALF).clamp(1, 1 + LARGEST // HALF).long()


def count(code: Codes, width: Int64[Tensor, " component"]) -> Int64[Tensor, "component bin"]:
    """How often each bin of each coefficient occurred."""
    place = torch.div(code + width // 2, width, rounding_mode="floor").clamp(-HALF, HALF) + HALF
    size = 2 * HALF + 1
    flat = place + size * torch.arange(len(width), device=code.device)
    return torch.bincount(flat.reshape(-1), minlength=size * len(width)).reshape(len(width), size)


def entropies(
    counts: Int64[Tensor, "*part component bin"], width: Int64[Tensor, " component"]
) -> Float64[Tensor, "*part component"]:
    """Order-0 entropy of the codes of each coefficient in bits, at most: exact where a bin is one code."""
    return rate_distortion.entropy(counts) + torch.log2(width.double()) * (counts.sum(-1) > 0)


def unseen(counts: Int64[Tensor, "*symbols bin"]) -> Float64[Tensor, "*symbols"]:
    """Bits that an entropy of counts lacks, of all symbols counted: (bins seen - 1) / 2 nats (Miller 1955), the more tables the more."""
    return ((counts > 0).sum(-1) - 1).clamp(min=0).double() / (2 * math.log(2))


def distances(values: Float64[Tensor, " row"]) -> Distances:
    """Count numbers in [0, 4] by their magnitude."""
    number = torch.floor(PER_OCTAVE * (torch.log2(values) + OCTAVES - 2)).clamp(0, PER_OCTAVE * OCTAVES - 1)
    return Distances(torch.bincount(number.long(), minlength=PER_OCTAVE * OCTAVES), values.sum())


def quantile(counts: Int64[Tensor, " bin"], share: float) -> float:
    """No more than this is the distance of a share of the rows: the upper edge of a bin, 4.4 % too large at most; NaN without rows."""
    total = int(counts.sum())
    if not total:
        return math.nan
    number = int((counts.cumsum(0) >= share * total).double().argmax())
    return float(2.0 ** ((number + 1) / PER_OCTAVE - OCTAVES + 2))

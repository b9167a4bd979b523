"""Weights as small whole numbers: w ~ scale (code - zero), with a scale and a zero for every row, or every group of inputs of a row.

Symmetric: the range -a..a, a the largest size, in 2^bits - 1 steps about the middle code. Asymmetric: the range of the values and of 0,
about a whole zero, so that a weight of 0 stays 0 in both. A code is the nearest: no weight is off by more than half a step, unless the
range is clipped: narrowed as far as the squared error of the weights falls.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

FINER = 1 + 2.0**-10
"""Steps are made so much wider before they are rounded to float16, that rounding cannot make them too narrow."""


CLIPS = tuple(1 - k / 40 for k in range(25))
"""Shares of the range that are tried, down to 0.4."""


class Scale(NamedTuple):
    """Of one group of each row."""

    step: Float32[Tensor, " output"]
    """A float16 where it has a normal one of that size."""
    zero: UInt8[Tensor, " output"]


class Coded(NamedTuple):
    """A weight [output, input] in codes."""

    code: UInt8[Tensor, "output input"]
    """0 to 2^bits - 1."""
    step: Float32[Tensor, "output group"]
    zero: UInt8[Tensor, "output group"]
    group: int
    """Inputs of a group; of the last, it may be fewer."""

    def weight(self) -> Float64[Tensor, "output input"]:
        """What the codes stand for."""
        of = torch.arange(self.code.shape[1], device=self.code.device) // self.group
        return values(self.code, self.step[:, of], self.zero[:, of])


def group_size(inputs: int, group: int | None) -> int:
    """Inputs that share a scale, at most all of a row; None for all. The last group may be smaller."""
    return inputs if group is None else min(group, inputs)


def scale_of(weight: Float64[Tensor, "output input"], bits: int, symmetric: bool, clip: bool) -> Scale:
    """The scale of each row. Rows of zeros get a step of 1, which codes them exactly."""
    if symmetric:
        high = weight.abs().amax(1)
        low = -high
    else:
        low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    zero = torch.full_like(step, 2 ** (bits - 1)) if symmetric else (-low / _storable(step)).round()
    whole = Scale(_storable(step), zero.clamp(0, 2**bits - 1).to(torch.uint8))
    return _clipped(weight, step, whole, bits) if clip else whole


def _clipped(weight: Tensor, step: Tensor, whole: Scale, bits: int) -> Scale:
    """Of each row, the widest of the ranges of least squared error."""
    best, least = whole.step, torch.full_like(step, torch.inf)
    for share in CLIPS:
        tried, zero = _storable(step * share)[:, None], whole.zero[:, None]
        left = (values(nearest(weight, tried, zero, bits), tried, zero) - weight).square().sum(1)
        best, least = torch.where(left < least, tried[:, 0], best), torch.minimum(left, least)
    return Scale(best, whole.zero)


def nearest(
    weight: Float64[Tensor, "output input"],
    step: Float32[Tensor, "output #input"],
    zero: UInt8[Tensor, "output #input"],
    bits: int,
) -> UInt8[Tensor, "output input"]:
    """The nearest codes."""
    return ((weight / step).round() + zero).clamp(0, 2**bits - 1).to(torch.uint8)


def values(
    code: UInt8[Tensor, "output input"],
    step: Float32[Tensor, "output #input"],
    zero: UInt8[Tensor, "output #input"],
) -> Float64[Tensor, "output input"]:
    """What codes stand for."""
    return (code.double() - zero) * step


def rounded(
    weight: Float64[Tensor, "output input"], bits: int, group: int | None, symmetric: bool, clip: bool = False
) -> Coded:
    """Every weight to the nearest code of its group.

    Args:
        weight: finite.
        bits: 1 to 8.
        group: inputs that share a scale, at least one; None for whole rows.
        clip: narrow ranges where that makes the squared error smaller.
    """
    size = group_size(weight.shape[1], group)
    parts = torch.split(weight, size, 1)
    found = [scale_of(part, bits, symmetric, clip) for part in parts]
    codes = [
        nearest(part, scale.step[:, None], scale.zero[:, None], bits)
        for part, scale in zip(parts, found, strict=True)
    ]
    steps, zeros = (torch.stack(each, 1) for each in zip(*found, strict=True))
    return Coded(torch.cat(codes, 1), steps, zeros, size)


def _storable(step: Float64[Tensor, " output"]) -> Float32[Tensor, " output"]:
    """No narrower, and with few digits: float16 where it has normal numbers of that size."""
    wide = (step * FINER).clamp(min=torch.finfo(torch.float32).tiny).float()
    half = torch.finfo(torch.float16)
    fits = (wide >= half.tiny) & (wide <= half.max)
    return torch.where(step > 0, torch.where(fits, wide.half().float(), wide), 1.0)

"""A split of samples by a hash, so that it depends on nothing but the seed and a sample's number."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

_MASKS = {shift: (1 << (64 - shift)) - 1 for shift in (27, 30, 31)}


def held_out(sample: Int64[Tensor, " row"], share: float, seed: int) -> Bool[Tensor, " row"]:
    """Whether each sample belongs to the held-out part.

    All rows of a sample fall on one side, on every device, in every batch. The hash is splitmix64 (Steele, Lea,
    Flood, OOPSLA 2014).

    Args:
        sample: numbers of samples.
        share: expected part of the samples that is held out.
        seed: another seed gives another split.
    """
    mixed = _mix(_mix(torch.full_like(sample, seed)) ^ sample)
    return (mixed & ((1 << 53) - 1)).double() < share * 2.0**53


def spread(sample: Int64[Tensor, " row"], groups: int) -> Int64[Tensor, " row"]:
    """Which of some groups of equal size each sample falls into: one of each run of `groups` samples into each, in an order that a hash
    turns from run to run, so that labels that alternate over samples are in every group."""
    return (sample + (_mix(sample // groups) & ((1 << 53) - 1))) % groups


def runs(group: Int64[Tensor, " row"], groups: int) -> tuple[Int64[Tensor, " row"], list[slice]]:
    """An order in which the rows of each group follow each other, as they came, and where each group is in it."""
    order = torch.argsort(group, stable=True)
    ends = torch.cumsum(torch.bincount(group, minlength=groups), 0).tolist()
    return order, [slice(low, high) for low, high in pairwise([0, *ends])]


def scattered(sample: Int64[Tensor, " row"], groups: int) -> Int64[Tensor, " row"]:
    """Which of some groups each sample falls into, independently of all others: groups differ as random samples do."""
    return (_mix(sample) & ((1 << 53) - 1)) % groups


def _mix(z: Tensor) -> Tensor:
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _right(z, 31)


def _right(z: Tensor, shift: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (z >> shift) & _MASKS[shift]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word

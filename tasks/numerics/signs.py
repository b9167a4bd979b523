"""Random signs that depend on a key alone: the same on every device, for any blocks and order of rows."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

WORD = 48
"""Bits of a word that are used: the best mixed of 64."""


def signs(key: Int64[Tensor, " row"], width: int, seed: int, draw: int) -> Float64[Tensor, "row feature"]:
    """Independent signs, +1 or -1, for each key and feature.

    Words of bits are the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over key, word, draw and seed.

    Args:
        key: equal keys have equal signs.
        width: features.
        seed: of all.
        draw: which of many independent sets.
    """
    words = torch.arange(-(-width // WORD), device=key.device)
    start = _mixed(_mixed(torch.tensor(seed, device=key.device)) + draw)
    mixed = _mixed(_mixed(key + start)[:, None] + words)
    bits = (mixed[:, :, None] >> torch.arange(WORD, device=key.device)) & 1
    return bits.flatten(1)[:, :width].double().mul_(2).sub_(1)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser; integers wrap around."""
    x = (x + -7046029254386353131).to(torch.int64)
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Right, zeros coming in."""
    return (x >> by) & ((1 << (64 - by)) - 1)

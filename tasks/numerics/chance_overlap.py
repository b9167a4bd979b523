"""What sets drawn at random have in common: the chance that an overlap is no more than that."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy.stats import hypergeom
from torch import Tensor


class Overlap(NamedTuple):
    """Of each pair of sets."""

    n: Int64[Tensor, "set set"]
    """Members in common."""
    expected: Float64[Tensor, "set set"]
    """The same of sets of these sizes that are drawn apart from each other."""
    p: Float64[Tensor, "set set"]
    """Chance that such sets have as many in common; 1 of a set with itself."""


def overlap(member: Bool[Tensor, "set item"]) -> Overlap:
    """Of all pairs, by the hypergeometric law."""
    inside = member.double()
    n, size = (inside @ inside.T).long(), member.sum(1)
    expected = size[:, None] * size[None].double() / max(1, member.shape[1])
    common, sizes = n.cpu().numpy(), size.cpu().numpy()
    p = hypergeom.sf(common - 1, member.shape[1], sizes[:, None], sizes[None])
    np.fill_diagonal(p, 1.0)
    return Overlap(n, expected, torch.from_numpy(np.clip(p, 0, 1)).to(member.device))


def expected_in(sizes: Sequence[int], items: int, least: int) -> float:
    """Items that are members of `least` sets or more, in expectation over sets of these sizes drawn apart from each other.

    Each item is a member of each set by itself, so that its number of sets is a sum of independent draws.
    """
    chance = np.zeros(len(sizes) + 1)
    chance[0] = 1.0
    for size in sizes:
        share = size / items if items else 0.0
        chance = chance * (1 - share) + np.append(0.0, chance[:-1]) * share
    return items * float(chance[least:].sum())

"""Lines of a list of edges -> a graph without direction: no loops, each pair once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


class EdgeList(NamedTuple):
    """Pairs, the smaller end first, ascending."""

    ends: Int64[np.ndarray, "edge 2"]
    weights: Float64[np.ndarray, " edge"]
    """Positive."""
    loops: int
    """Lines that were left out, from something to itself."""
    repeated: int
    """Lines that came once more in the same direction."""
    weightless: int
    """Pairs that were left out, of weight 0."""


def undirected(
    source: Int64[np.ndarray, " line"],
    target: Int64[np.ndarray, " line"],
    weight: Float64[np.ndarray, " line"],
) -> EdgeList:
    """Lines of one direction that say a pair again add up; of a pair's two directions the larger weight counts.

    So a list that has each edge in both directions says the same as one that has it once. The order of lines changes at most the last bit.

    Args:
        source: ends, not negative.
        target: the other ends.
        weight: not negative, finite.

    Cost: a sort of the lines.
    """
    loop = source == target
    source, target, weight = source[~loop], target[~loop], weight[~loop]
    base = int(max(source.max(initial=0), target.max(initial=0))) + 1
    lines, place = np.unique(source * base + target, return_inverse=True)
    total = np.bincount(place, weight, minlength=len(lines))
    one, other = lines // base, lines % base
    pairs, place = np.unique(np.minimum(one, other) * base + np.maximum(one, other), return_inverse=True)
    largest = np.zeros(len(pairs))
    np.maximum.at(largest, place, total)
    some = largest > 0
    return EdgeList(
        np.stack([pairs // base, pairs % base], axis=1)[some],
        largest[some],
        int(loop.sum()),
        len(source) - len(lines),
        int((~some).sum()),
    )

"""How well clusterings of parts of the same rows agree: the number of clusters for which they do is one that rows show by themselves.

Two random parts of the rows are clustered each for itself and compared on the rows that both hold (Ben-Hur, Elisseeff, Guyon, Pacific
Symposium on Biocomputing 7 (2002) 6), by the adjusted Rand index, which chance gives 0.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from tasks.numerics.agreement import agreement, counted

Labels = Int64[np.ndarray, "number row"]


class Stability(NamedTuple):
    """For each number of clusters."""

    agreement: Float64[np.ndarray, " number"]
    """Mean adjusted Rand index over pairs of parts."""
    error: Float64[np.ndarray, " number"]
    """Standard error of that mean, by leaving out each part."""


def parts_of_rows(n: int, parts: int, share: float, seed: int) -> list[Int64[np.ndarray, " part"]]:
    """Rows, ascending, of random parts that each hold a share of all."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 4])))
    return [np.sort(rng.permutation(n)[: max(1, round(share * n))]) for _ in range(parts)]


def stability(labels: Sequence[Labels]) -> Stability:
    """Of clusterings of parts, for the same numbers of clusters each; -1 where a row is not in the part.

    Raises:
        ValueError: for fewer than three parts, which have no standard error.

    Cost: O(part^2 number row).
    """
    m = len(labels)
    if m < 3:
        raise ValueError(f"found {m} parts, expected 3 or more")
    pair = np.full((m, m, len(labels[0])), np.nan)
    for a, b in combinations(range(m), 2):
        pair[a, b] = pair[b, a] = [_alike(x, y) for x, y in zip(labels[a], labels[b], strict=True)]
    mean = np.nanmean(pair, axis=(0, 1))
    without = np.stack([np.nanmean(np.delete(np.delete(pair, k, 0), k, 1), axis=(0, 1)) for k in range(m)])
    spread = ((without - without.mean(0)) ** 2).sum(0)
    return Stability(mean, np.sqrt((m - 1) / m * spread))


def most_stable(numbers: Sequence[int], found: Stability) -> int:
    """The largest number that agrees about as well as the best, within the best's standard error: of nested clusters the finest."""
    best = int(np.argmax(found.agreement))
    enough = found.agreement >= found.agreement[best] - found.error[best] - 1e-12
    return int(max(np.asarray(numbers)[enough]))


def clustered_parts(
    parts: Sequence[Int64[np.ndarray, " part"]], n: int, cluster: Callable[[np.ndarray], Labels]
) -> list[Labels]:
    """Labels of all rows by the clustering of each part, -1 outside it."""
    found = []
    for rows in parts:
        inside = cluster(rows)
        labels = np.full((len(inside), n), -1, dtype=np.int64)
        labels[:, rows] = inside
        found.append(labels)
    return found


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    made = agreement(counted(a, b, int(a.max()) + 1, int(b.max()) + 1))
    return np.nan if made is None else made.adjusted_rand

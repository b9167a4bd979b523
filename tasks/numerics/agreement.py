"""How well a partition of rows agrees with known classes, from counts alone, so that rows may stream by.

With n_kc rows of cluster k and class c: accuracy max over one-to-one maps m of sum_k n_{k m(k)} / n (Kuhn, Naval Research Logistics
Quarterly 2 (1955) 83); purity sum_k max_c n_kc / n; the adjusted Rand index of Hubert and Arabie (Journal of Classification 2 (1985)
193); mutual information over the arithmetic mean of both entropies. Clusters and classes may differ in number: what has no partner
counts as wrong.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from scipy.optimize import linear_sum_assignment

Table = Int64[np.ndarray, "cluster class"]


class Agreement(NamedTuple):
    """All are 1 where clusters are the classes."""

    accuracy: float
    """Share of rows that are right under the best one-to-one map of clusters to classes; what knows nothing has about the largest class."""
    purity: float
    """Share of rows in their cluster's most frequent class; it grows with the number of clusters."""
    adjusted_rand: float
    """0 in the mean for partitions that know nothing, below it for worse ones."""
    normalised_mutual_information: float
    """Over the arithmetic mean of the entropies; it grows with the number of clusters."""


def counted(
    cluster: Int64[np.ndarray, " row"], of: Int64[np.ndarray, " row"], clusters: int, classes: int
) -> Table:
    """Rows of each cluster and class; those of negative number in either are left out."""
    known = (cluster >= 0) & (of >= 0)
    return np.bincount(cluster[known] * classes + of[known], minlength=clusters * classes).reshape(
        clusters, classes
    )


def agreement(table: Table) -> Agreement | None:
    """From counts; None without rows. Cost: O(min(cluster, class)^2 max(cluster, class))."""
    n = int(table.sum())
    if n == 0:
        return None
    row, column = linear_sum_assignment(table, maximize=True)
    return Agreement(
        accuracy=int(table[row, column].sum()) / n,
        purity=int(table.max(axis=1).sum()) / n,
        adjusted_rand=_adjusted_rand(table, n),
        normalised_mutual_information=_mutual(table, n),
    )


def _adjusted_rand(table: Table, n: int) -> float:
    """In whole numbers, which squares of counts may need."""
    both, of_cluster, of_class = (
        sum(int(c) * (int(c) - 1) // 2 for c in counts.flat)
        for counts in (table, table.sum(axis=1), table.sum(axis=0))
    )
    pairs = n * (n - 1) // 2
    if of_cluster == of_class == both:
        return 1.0
    chance = 2 * of_cluster * of_class
    return (2 * both * pairs - chance) / ((of_cluster + of_class) * pairs - chance)


def _mutual(table: Table, n: int) -> float:
    """1 where both are one part: they are the same."""
    share = table / n
    cluster, of = share.sum(axis=1), share.sum(axis=0)
    entropies = _entropy(cluster) + _entropy(of)
    if entropies == 0:
        return 1.0
    return max(0.0, 2 * (entropies - _entropy(share)) / entropies)


def _entropy(share: np.ndarray) -> float:
    some = share[share > 0]
    return float(-(some * np.log(some)).sum())

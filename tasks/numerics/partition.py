"""Clusters from a spectral embedding: k-means of its rows, scaled to length 1, from many seeded starts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from tasks.numerics.affinity import row_normalised


class Partition(NamedTuple):
    """Clusters are numbered by size, largest first, then by their first row."""

    cluster: Int64[np.ndarray, " row"]
    inertia: float
    """Sum of squared distances from the clusters' means: that of the best start."""


def partition(
    vectors: Float64[np.ndarray, "row component"], clusters: int, starts: int, seed: int
) -> Partition:
    """The best of some starts. Cost: O(row cluster component starts)."""
    with threadpool_limits(1):
        found = KMeans(clusters, n_init=starts, random_state=seed).fit(row_normalised(vectors))
    return Partition(by_size(found.labels_.astype(np.int64), clusters), float(found.inertia_))


def by_size(cluster: Int64[np.ndarray, " row"], clusters: int) -> Int64[np.ndarray, " row"]:
    """The same clusters, the largest first; of equal ones that with the earlier row."""
    n = len(cluster)
    sizes, firsts = np.bincount(cluster, minlength=clusters), np.full(clusters, n)
    np.minimum.at(firsts, cluster, np.arange(n))
    rank = np.empty(clusters, dtype=np.int64)
    rank[np.lexsort((firsts, -sizes))] = np.arange(clusters)
    numbered: np.ndarray = rank[cluster]
    return numbered

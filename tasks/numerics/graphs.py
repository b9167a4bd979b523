"""Sparse graphs of rows from how rows express each other, and what tells of them: mass inside clusters, connectivity, wrong edges."""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64
from scipy import sparse

BLOCK_ROWS = 2048
"""Rows whose likeness to all others is made at once."""
Matrix: TypeAlias = sparse.csr_array


def coefficient_matrix(
    index: Int64[np.ndarray, "row entry"],
    coefficient: Float64[np.ndarray, "row entry"],
    names: Int64[np.ndarray, " row"],
) -> Matrix:
    """C with row i's coefficients in row i.

    Args:
        index: names of the rows that express a row; -1 in free places. Rows that are not among `names` are left out.
        coefficient: their coefficients.
        names: of the rows, ascending.
    """
    n = len(names)
    place = np.minimum(np.searchsorted(names, index), max(n - 1, 0))
    there = (index >= 0) & (names[place] == index) & (coefficient != 0)
    row = np.nonzero(there)[0]
    return Matrix((coefficient[there], (row, place[there])), shape=(n, n))


def largest_entries(c: Matrix, mass: float) -> Matrix:
    """Of each row the largest sizes, until they hold this share of the sum of sizes; all where it is 1."""
    if mass >= 1:
        return c
    kept = [_leading(np.abs(c.data[a:b]), mass) + a for a, b in zip(c.indptr[:-1], c.indptr[1:], strict=True)]
    chosen = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    row = np.repeat(np.arange(c.shape[0]), [len(k) for k in kept])
    return Matrix((c.data[chosen], (row, c.indices[chosen])), shape=c.shape)


def row_scaled(c: Matrix, by: Literal["length", "largest", "none"]) -> Matrix:
    """Rows divided by their Euclidean length or their largest size; rows of zeros stay."""
    if by == "none":
        return c
    square = abs(c).max(axis=1).toarray().ravel() if by == "largest" else np.sqrt(c.multiply(c).sum(axis=1))
    scale = np.asarray(square, dtype=np.float64).ravel()
    return Matrix(sparse.diags_array(1 / np.where(scale > 0, scale, 1.0)) @ c)


def symmetric(c: Matrix) -> Matrix:
    """(|C| + |C|') / 2, without loops."""
    size = abs(c)
    return _without_loops(Matrix((size + size.T) / 2))


def nearest_expressions(c: Matrix, neighbours: int) -> Matrix:
    """The graph that joins rows whose coefficients point most nearly the same way: weight 1 from one end, averaged over both.

    Rows whose coefficients are at right angles, or further apart, are not joined.

    Cost: the sparse products of C with itself, by blocks of rows.
    """
    unit, n = row_scaled(c, "length"), c.shape[0]
    rows, columns = [], []
    for first in range(0, n, BLOCK_ROWS):
        likeness = Matrix(unit[first : first + BLOCK_ROWS] @ unit.T)
        for k, (a, b) in enumerate(zip(likeness.indptr[:-1], likeness.indptr[1:], strict=True)):
            others, value = likeness.indices[a:b], likeness.data[a:b]
            other = (others != first + k) & (value > 0)
            order = np.lexsort((others[other], -value[other]))[:neighbours]
            columns.append(others[other][order])
            rows.append(np.full(len(order), first + k))
    joined = np.concatenate(rows), np.concatenate(columns)
    graph = Matrix((np.ones(len(joined[0])), joined), shape=(n, n))
    return Matrix((graph + graph.T) / 2)


def slack_of(size: Matrix, edges: int) -> float:
    """Median over rows of how far their largest sizes exceed the last of them, added up: the weight of squares with which the projection
    on doubly stochastic matrices keeps about this many edges of a row."""
    row = np.repeat(np.arange(size.shape[0]), np.diff(size.indptr))
    order = np.lexsort((-size.data, row))
    rank = np.arange(len(order)) - np.repeat(size.indptr[:-1], np.diff(size.indptr))
    most = min(edges, size.shape[0])  # of which a row has less: the last is 0 then, as beyond
    top = np.zeros((size.shape[0], most))
    some = rank < most
    top[row[order][some], rank[some]] = size.data[order][some]
    slack = (top - top[:, -1:]).sum(1)
    return float(np.median(slack[slack > 0])) if (slack > 0).any() else float(size.data.max())


def least_entry(c: Matrix) -> Float64[np.ndarray, " row"]:
    """The smallest size among the entries of each row; infinite without any."""
    least = np.full(c.shape[0], np.inf)
    np.minimum.at(least, np.repeat(np.arange(c.shape[0]), np.diff(c.indptr)), np.abs(c.data))
    return least


def wrong_share(c: Matrix, of: Int64[np.ndarray, " row"]) -> float | None:
    """Mean over rows of known class of the share of their coefficients' sizes that lies on rows of other classes; None without any.

    0 where coefficients keep to subspaces (You, Robinson, Vidal, CVPR (2016): subspace-preserving error).
    """
    row = np.repeat(np.arange(c.shape[0]), np.diff(c.indptr))
    known = (of[row] >= 0) & (of[c.indices] >= 0)
    size = np.abs(c.data) * known
    wrong = np.bincount(row, size * (of[row] != of[c.indices]), minlength=len(of))
    total = np.bincount(row, size, minlength=len(of))
    some = total > 0
    return float(np.mean(wrong[some] / total[some])) if some.any() else None


def between(graph: Matrix, cluster: Int64[np.ndarray, " row"], clusters: int) -> np.ndarray:
    """float64 [cluster, cluster]: the weight of edges from one cluster into another, over all that the first one has."""
    member = Matrix(
        (np.ones(len(cluster)), (cluster, np.arange(len(cluster)))), shape=(clusters, len(cluster))
    )
    weight = (member @ graph @ member.T).toarray()
    total = weight.sum(1, keepdims=True)
    shares: np.ndarray = weight / np.where(total > 0, total, 1)
    return shares


def ordered(graph: Matrix, cluster: Int64[np.ndarray, " row"], most: int) -> Float64[np.ndarray, "bin bin"]:
    """Mean weight of pairs of rows, rows in the order of their clusters and cut into at most so many bins of like size."""
    n = len(cluster)
    bins = min(n, most)
    place = np.empty(n, dtype=np.int64)
    place[np.argsort(cluster, kind="stable")] = np.arange(n) * bins // n
    membership = Matrix((np.ones(n), (place, np.arange(n))), shape=(bins, n))
    size = np.bincount(place, minlength=bins)
    total: np.ndarray = (membership @ graph @ membership.T).toarray()
    return total / np.outer(size, size)


def inside(graph: Matrix, cluster: Int64[np.ndarray, " row"]) -> float:
    """Share of the weight of edges that lies inside clusters; 0 without edges."""
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    total = float(graph.data.sum())
    return float(graph.data[cluster[row] == cluster[graph.indices]].sum()) / total if total else 0.0


def conductance(
    graph: Matrix, cluster: Int64[np.ndarray, " row"], clusters: int
) -> Float64[np.ndarray, " cluster"]:
    """Weight of edges that leave a cluster, over that of all edge ends in it or of all others, whichever is less; NaN where that is 0."""
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    leaving = cluster[row] != cluster[graph.indices]
    cut = np.bincount(cluster[row[leaving]], graph.data[leaving], minlength=clusters)
    volume = np.bincount(cluster[row], graph.data, minlength=clusters)
    least = np.minimum(volume, volume.sum() - volume)
    found: np.ndarray = np.divide(cut, least, out=np.full(clusters, np.nan), where=least > 0)
    return found


def modularity(graph: Matrix, cluster: Int64[np.ndarray, " row"], clusters: int) -> float:
    """Weight inside clusters over all, less what random edges of the same degrees would have there (Newman, Girvan 2004)."""
    degree = np.asarray(graph.sum(axis=1)).ravel()
    total = degree.sum()
    if total == 0:
        return 0.0
    volume = np.bincount(cluster, degree, minlength=clusters) / total
    return inside(graph, cluster) - float((volume**2).sum())


def _leading(size: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-size, kind="stable")
    reached = np.cumsum(size[order])
    if not len(size) or reached[-1] == 0:
        return order[:0]
    return order[: int(np.searchsorted(reached, mass * reached[-1] * (1 - 1e-12))) + 1]


def _without_loops(graph: Matrix) -> Matrix:
    if graph.diagonal().any():
        graph = Matrix(graph - sparse.diags_array(graph.diagonal()))
    graph.eliminate_zeros()
    return graph

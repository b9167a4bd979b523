"""Rows spread along the edges of a graph, and directions that part them: spectral subspace clustering of attributed graphs.

Rows F, scaled so that all have one degree in the graph of their products, are summed over walks of up to `hops` steps with weight
`power` to the power of the steps: Z = (1 - a) / (1 - a^(T+1)) sum_t a^t P^t F. Left singular vectors of Z part the graph of weights Z Z'
by conductance, leading eigenvectors of its modularity matrix by modularity (Lin, Yang, Zheng, Ke, KDD (2025)).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy import sparse
from scipy.sparse.linalg import LinearOperator

from tasks.numerics.affinity import DENSE, largest_pairs
from tasks.numerics.graphs import Matrix
from tasks.numerics.partition import by_size

ROUNDS, EXTRA, POWERS = 100, 10, 7
"""Of the rounding; directions and powers that the choice between forms of Z reckons with."""


class Spread(NamedTuple):
    """Z as products: made whole, or as steps along edges at each product."""

    forward: Callable[[np.ndarray], np.ndarray]
    """[feature, any] -> [row, any]"""
    backward: Callable[[np.ndarray], np.ndarray]
    """[row, any] -> [feature, any]"""
    rows: int
    explicit: bool


class Directions(NamedTuple):
    """Directions of rows, best first."""

    vectors: Float64[np.ndarray, "row component"]
    values: Float64[np.ndarray, " component"]
    """Descending: squares of singular values, or eigenvalues."""


class Rounded(NamedTuple):
    """Clusters are numbered by size, largest first."""

    cluster: Int64[np.ndarray, " row"]
    objective: float
    """Squared projection of the clusters' normalised indicators on the directions, over the number of clusters: 1 where they span them."""
    agreeing: int
    """Starts that reached the best objective, to 1e-6."""


def adjacency(ends: Int64[np.ndarray, "edge 2"], weights: Float64[np.ndarray, " edge"], n: int) -> Matrix:
    """The symmetric matrix of edges that are each there once."""
    half = Matrix((weights, (ends[:, 0], ends[:, 1])), shape=(n, n))
    return Matrix(half + half.T)


def propagation(graph: Matrix) -> Matrix:
    """P = D^(-1/2) (A + I) D^(-1/2), symmetric; a row without edges has 1 on itself."""
    looped = Matrix(graph + sparse.eye_array(graph.shape[0]))
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(looped.sum(axis=1)).ravel()))
    return Matrix(scale @ looped @ scale)


def tf_idf(x: Float64[np.ndarray, "row feature"]) -> Float64[np.ndarray, "row feature"]:
    """Counts by ln((1 + rows) / (1 + rows that have the feature)) + 1."""
    having = np.count_nonzero(x, axis=0)
    weighted: np.ndarray = x * (np.log((1 + len(x)) / (1 + having)) + 1)
    return weighted


def one_degree(x: Float64[np.ndarray, "row feature"]) -> tuple[Float64[np.ndarray, "row any"], bool]:
    """Rows of length 1, over the square root of their products' sum with all rows; and whether a constant was added.

    Where entries are negative, products may be, and sums of them have no root: rows then get one further feature of the same length, so
    that products are (1 + cosine) / 2. A row of zeros stays one.
    """
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1.0)
    lifted = bool((unit < 0).any())
    if lifted:
        unit = np.concatenate([unit, (length > 0).astype(np.float64)], axis=1) / np.sqrt(2)
    degree = unit @ unit.sum(axis=0)
    return unit / np.sqrt(np.where(degree > 0, degree, 1.0))[:, None], lifted


def explicit_is_cheaper(features: int, clusters: int) -> bool:
    """Whether Z is made whole rather than stepped along edges at each product.

    The paper compares m d T + 2 (tau + 1) n d (k + 10) with 2 (tau + 1) (n d + m T) (k + 10), for n rows of d features, m entries of P, T
    hops and tau = 7 powers of k + 10 directions; n, m and T cancel.
    """
    return features < 2 * (POWERS + 1) * (clusters + EXTRA)


def spread(
    p: Matrix, f: Float64[np.ndarray, "row feature"], power: float, hops: int, explicit: bool
) -> Spread:
    """Z = (1 - a) / (1 - a^(T+1)) sum_t a^t P^t F. Cost: hops products with P, once or at each product."""
    share = _shares(power, hops)
    if explicit:
        z = _series(p, f, share)
        return Spread(lambda v: z @ v, lambda u: z.T @ u, len(f), True)
    return Spread(lambda v: _series(p, f @ v, share), lambda u: f.T @ _series(p, u, share), len(f), False)


def by_conductance(z: Spread, count: int, seed: int) -> Directions:
    """Leading left singular vectors of Z; the first one is that of all rows together."""
    return _leading(lambda u: z.forward(z.backward(u)), z.rows, count, seed)


def by_modularity(z: Spread, features: int, count: int, resolution: float, seed: int) -> Directions:
    """Leading eigenvectors of S - g w w' / sum(w), S the products of rows of Z scaled by the root of their sum, w the sums of S."""
    sums = z.forward(np.ones((features, 1)))
    root = np.sqrt(np.maximum(sums, 0.0))

    def likeness(u: np.ndarray) -> np.ndarray:
        made: np.ndarray = root * z.forward(z.backward(root * u))
        return made

    w = likeness(np.ones((z.rows, 1)))
    total = float(w.sum())

    def apply(u: np.ndarray) -> np.ndarray:
        less: np.ndarray = likeness(u) - resolution / total * w * (w.T @ u)
        return less

    return _leading(apply, z.rows, count, seed)


def rounded(vectors: Float64[np.ndarray, "row component"], starts: int, seed: int) -> Rounded:
    """As many clusters as there are directions: each row goes where the clusters' normalised indicators, projected, are largest.

    Repeated from seeded random rotations of the rows, scaled to length 1, until none moves (at most 100 times); the start with the largest
    objective counts. Of no start may a cluster stay empty, unless all leave one so.

    Cost: O(start round row component^2).
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = vectors / np.where(length > 0, length, 1.0)
    k = rows.shape[1]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    found = []
    for _ in range(starts):
        turn = np.linalg.qr(rng.standard_normal((k, k)))[0]
        cluster = _settled(rows, (rows @ turn).argmax(axis=1))
        full = int(np.count_nonzero(np.bincount(cluster, minlength=k)))
        found.append((full, _objective(rows, cluster), cluster))
    full, best, cluster = max(found, key=lambda each: each[:2])
    agreeing = sum(abs(value - best) <= 1e-6 for some, value, _ in found if some == full)
    return Rounded(by_size(cluster.astype(np.int64), k), best, agreeing)


def _settled(rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    for _ in range(ROUNDS):
        means = _member_sums(rows, cluster)
        moved = (rows @ means.T).argmax(axis=1)
        if (moved == cluster).all():
            break
        cluster = moved
    return cluster


def _member_sums(rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """[cluster, component]: sums of members over the root of their number: the projected indicator."""
    k, n = rows.shape[1], len(rows)
    member = Matrix((np.ones(n), (cluster, np.arange(n))), shape=(k, n))
    size = np.bincount(cluster, minlength=k)
    sums: np.ndarray = (member @ rows) / np.sqrt(np.maximum(size, 1))[:, None]
    return sums


def _objective(rows: np.ndarray, cluster: np.ndarray) -> float:
    total = float(np.square(rows).sum())
    return float(np.square(_member_sums(rows, cluster)).sum()) / total if total else 0.0


def _leading(apply: Callable[[np.ndarray], np.ndarray], n: int, count: int, seed: int) -> Directions:
    """Largest eigenpairs of a symmetric matrix that is given as a product. Signs are such that cubes of entries add up to no less than 0,
    in whatever order rows are."""
    if n <= max(DENSE, 2 * count + 2):
        whole = apply(np.eye(n))
        values, vectors = np.linalg.eigh((whole + whole.T) / 2)
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    else:
        start = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).standard_normal(n)
        operator = LinearOperator((n, n), matvec=lambda u: apply(u.reshape(n, -1)).ravel(), dtype=np.float64)
        values, vectors = largest_pairs(operator, count, start)
    upright = np.where((vectors**3).sum(axis=0) < 0, -1.0, 1.0)
    return Directions(np.ascontiguousarray(vectors * upright), np.ascontiguousarray(values))


def _shares(power: float, hops: int) -> Float64[np.ndarray, " step"]:
    """Of walks of each length, the largest of which is reckoned as 1 first: powers of 1000 hops are beyond float64."""
    length = np.arange(hops + 1.0)
    weight = power ** (length - hops if power > 1 else length)
    share: np.ndarray = weight / weight.sum()
    return share


def _series(p: Matrix, f: np.ndarray, share: Float64[np.ndarray, " step"]) -> np.ndarray:
    total = share[-1] * f
    for each in share[-2::-1]:
        total = each * f + p @ total
    return np.asarray(total)

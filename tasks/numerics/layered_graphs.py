"""Several graphs of the same rows in one spectral embedding: the mean of their Laplacians, drawn towards the subspace of each.

With S_l = D^(-1/2) A_l D^(-1/2) and U_l the k smallest eigenvectors of I - S_l, the embedding minimises over orthonormal U
tr U' (sum_l (I - S_l) - gamma sum_l U_l U_l') U: the second term is, but for a constant, the sum of squared projection distances between
the spans of U and U_l (Dong, Frossard, Vandergheynst, Nefedov, IEEE TSP 62 (2014) 905). Here both sums are means over layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy import sparse
from scipy.sparse.linalg import LinearOperator

from tasks.numerics.affinity import DENSE, Embedding, embed, largest_pairs, parts_of, placed, start_vector
from tasks.numerics.graphs import Matrix

TIES = 9
"""Digits to which eigenvalues are told apart; of equal ones those of larger parts come first."""


class Layer(NamedTuple):
    """A graph and its own embedding. Rows without an edge know nothing here, and have no part in it."""

    scaled: Matrix
    """D^(-1/2) A D^(-1/2); rows without an edge are zero."""
    values: Float64[np.ndarray, " component"]
    """Smallest eigenvalues of the normalised Laplacian of the rows with an edge, ascending."""
    vectors: Float64[np.ndarray, "row component"]
    parts: int
    """Connected parts of the rows with an edge."""
    alone: int
    """Rows without."""


def layer(graph: Matrix, components: int, seed: int) -> Layer:
    """The smallest eigenpairs of a symmetric, non-negative graph with at least one edge. Cost: as `embed`."""
    degree = np.asarray(graph.sum(axis=1)).ravel()
    linked = np.flatnonzero(degree > 0)
    scale = sparse.diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    found = embed(Matrix(graph[linked][:, linked]), min(components, len(linked)), seed)
    vectors = np.zeros((len(degree), found.vectors.shape[1]))
    vectors[linked] = found.vectors
    alone = len(degree) - len(linked)
    return Layer(Matrix(scale @ graph @ scale), found.values, vectors, found.parts, alone)


def mean_graph(layers: Sequence[Layer]) -> Matrix:
    """The mean of the scaled graphs."""
    total = layers[0].scaled
    for each in layers[1:]:
        total = total + each.scaled
    return Matrix(total / len(layers))


def fuse(layers: Sequence[Layer], clusters: int, gamma: float, components: int, seed: int) -> Embedding:
    """The smallest eigenpairs of (1 + gamma) I - mean_l (S_l + gamma U_l U_l'), each part that no layer joins by itself.

    Args:
        layers: of the same rows.
        clusters: columns of each U_l.
        gamma: weight of the layers' subspaces; 0: the mean graph alone.
        components: how many pairs.
        seed: of the solver's start vectors.

    Returns:
        Values are 0 where all layers have a part, at most 2 + gamma. Rows without an edge in any layer are zero.

    Cost: O(row^3) of parts up to 400 rows, else a few hundred products with all graphs and subspaces; no matrix of rows by rows.
    """
    graph = mean_graph(layers)
    spans = np.hstack([each.vectors[:, :clusters] for each in layers]) * np.sqrt(gamma / len(layers))
    parts = [rows for rows in parts_of(graph) if len(rows) > 1]
    values, vectors = [], []
    for rows in parts:
        inside = spans[rows][:, spans[rows].any(axis=0)]  # a vector of a layer lies in one of its parts
        value, vector = _largest(Matrix(graph[rows][:, rows]), inside, min(components, len(rows)), seed)
        values.append(np.maximum(1 + gamma - value, 0.0))
        vectors.append((rows, vector))
    chosen = np.argsort(np.concatenate(values).round(TIES), kind="stable")[:components]
    return Embedding(
        np.concatenate(values)[chosen],
        placed(vectors, chosen, graph.shape[0]),
        len(parts),
        len(parts[-1]),
    )


def _largest(graph: Matrix, spans: np.ndarray, components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenpairs of the graph plus the spans' products, descending."""
    n = graph.shape[0]
    if n <= max(DENSE, 2 * components):
        values, vectors = np.linalg.eigh(graph.toarray() + spans @ spans.T)
        return values[::-1][:components], vectors[:, ::-1][:, :components]
    product = LinearOperator((n, n), matvec=lambda v: graph @ v + spans @ (spans.T @ v), dtype=np.float64)
    return largest_pairs(product, components, start_vector(n, seed))

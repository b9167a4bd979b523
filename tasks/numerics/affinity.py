"""A graph of cosine neighbours and its spectral embedding, for some thousands of rows in memory."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import sparse
from scipy.sparse.csgraph import connected_components, laplacian
from scipy.sparse.linalg import eigsh
from torch import Tensor

from tasks.numerics.neighbours import nearest, none_yet

DENSE = 400
"""Up to so many rows all eigenvalues are computed, which no start vector can disturb."""


class Embedding(NamedTuple):
    """The smallest eigenpairs of a graph's normalised Laplacian."""

    values: Float64[np.ndarray, " component"]
    """Ascending, in 0..2; as many zeros as the graph has parts."""
    vectors: Float64[np.ndarray, "row component"]
    parts: int
    """Connected parts of the graph."""


def unit_rows(x: Float[Tensor, "row feature"]) -> Float64[Tensor, "row feature"]:
    """Rows of length 1; a row of zeros stays one."""
    x = x.double()
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp(min=torch.finfo(x.dtype).tiny)


def cosine_graph(x: Float[Tensor, "row feature"], k: int) -> sparse.csr_matrix:
    """The symmetric graph that joins each row with its k nearest by cosine; weights are (1 + cosine) / 2, in 0..1.

    An edge that one end alone has chosen gets half its weight.

    Cost: row^2 feature flops; memory O(row k).
    """
    rows, n = unit_rows(x), len(x)
    index = torch.arange(n, device=x.device)
    found = nearest(none_yet(n, k, x.device), rows, index, rows, index)
    there = (found.index >= 0).cpu().numpy()
    weight = (1 - found.distance.square() / 4).clamp(0, 1).cpu().numpy()
    source = np.repeat(np.arange(n), k).reshape(n, k)[there]
    graph = sparse.csr_matrix((weight[there], (source, found.index.cpu().numpy()[there])), shape=(n, n))
    return (graph + graph.T) / 2


def embed(graph: sparse.csr_matrix, components: int, seed: int) -> Embedding:
    """The smallest eigenpairs of I - D^(-1/2) A D^(-1/2).

    Args:
        graph: symmetric, non-negative.
        components: how many.
        seed: of the solver's start vector.

    Cost: O(row^3) up to 400 rows, else a few hundred products with the graph.
    """
    n = graph.shape[0]
    parts = int(connected_components(graph, directed=False)[0])
    matrix = laplacian(graph, normed=True)
    if n <= max(DENSE, 2 * components):
        values, vectors = np.linalg.eigh(matrix.toarray())
        return Embedding(np.clip(values[:components], 0, 2), vectors[:, :components], parts)
    first = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).standard_normal(n)
    shifted = 2 * sparse.identity(n) - matrix
    values, vectors = eigsh(shifted.tocsr(), k=components, which="LA", v0=first, tol=1e-10)
    order = np.argsort(-values)
    return Embedding(np.clip(2 - values[order], 0, 2), vectors[:, order], parts)


def eigengap(values: Float64[np.ndarray, " component"]) -> tuple[int, float]:
    """The number of clusters after which the ascending eigenvalues jump most, at least 2, and that jump."""
    gaps = np.diff(values)[1:]
    best = int(np.argmax(gaps))
    return best + 2, float(gaps[best])


def row_normalised(vectors: Float64[np.ndarray, "row component"]) -> Float64[np.ndarray, "row component"]:
    """Rows of length 1; rows of zeros stay so."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)

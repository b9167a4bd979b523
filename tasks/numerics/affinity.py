"""A graph of cosine neighbours and its spectral embedding, for some thousands of rows in memory."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy import sparse
from scipy.sparse.csgraph import connected_components, laplacian
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics.graphs import Matrix
from tasks.numerics.neighbours import nearest, none_yet

DENSE = 400
"""Up to so many rows all eigenvalues are computed, which no start vector can disturb."""
TILE = 1024
"""Rows that are compared with all at a time."""


class Embedding(NamedTuple):
    """The smallest eigenpairs of a graph's normalised Laplacian."""

    values: Float64[np.ndarray, " component"]
    """Ascending, in 0..2; as many zeros as the graph has parts."""
    vectors: Float64[np.ndarray, "row component"]
    parts: int
    """Connected parts of the graph."""
    smallest_part: int
    """Rows of the smallest one."""


def unit_rows(x: Float[Tensor, "row feature"]) -> Float64[Tensor, "row feature"]:
    """Rows of length 1; a row of zeros stays one."""
    x = x.double()
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp(min=torch.finfo(x.dtype).tiny)


def cosine_graph(x: Float[Tensor, "row feature"], k: int) -> Matrix:
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
    graph = Matrix((weight[there], (source, found.index.cpu().numpy()[there])), shape=(n, n))
    return Matrix((graph + graph.T) / 2)


def together(labels: Int64[Tensor, "run row"], clusters: int, k: int) -> Matrix:
    """The symmetric graph that joins each row with the k others that most runs put into one cluster with it.

    Weights are shares of the runs; an edge that one end alone has chosen gets half its weight.

    Cost: 2 row^2 run clusters flops in float32; memory O(row (run clusters + k)).
    """
    runs, n = labels.shape
    marks = torch.nn.functional.one_hot(labels.T, clusters).float().reshape(n, runs * clusters)
    weight, index = [], []
    for first in range(0, n, TILE):
        shared = marks[first : first + TILE] @ marks.T
        rows = torch.arange(len(shared), device=labels.device)
        shared[rows, rows + first] = -1
        most = shared.topk(k, dim=1)
        weight.append(most.values.cpu().numpy() / runs)
        index.append(most.indices.cpu().numpy())
    ends = (np.repeat(np.arange(n), k), np.concatenate(index).ravel())
    graph = Matrix((np.concatenate(weight).ravel().astype(np.float64), ends), shape=(n, n))
    return Matrix((graph + graph.T) / 2)


def embed(graph: Matrix, components: int, seed: int) -> Embedding:
    """The smallest eigenpairs of I - D^(-1/2) A D^(-1/2), each connected part by itself: as many values are exactly 0 as there are parts,
    of which a solver for the whole graph finds some only.

    Args:
        graph: symmetric, non-negative, without loops.
        components: how many; zeros of larger parts come first.
        seed: of the solver's start vectors.

    Cost: O(row^3) of parts up to 400 rows, else a few hundred products with the graph.
    """
    graph = graph.copy()
    graph.eliminate_zeros()
    parts = parts_of(graph)
    more = max(1, components - len(parts) + 1)
    values, vectors = [], []
    for inside in parts[:components]:
        value, vector = _of_part(graph[inside][:, inside], min(more, len(inside)), seed)
        values.append(value)
        vectors.append((inside, vector))
    chosen = np.argsort(np.concatenate(values), kind="stable")[:components]
    placed_vectors = placed(vectors, chosen, graph.shape[0])
    return Embedding(np.concatenate(values)[chosen], placed_vectors, len(parts), len(parts[-1]))


def parts_of(graph: Matrix) -> list[Int64[np.ndarray, " row"]]:
    """The rows of each connected part, the largest part first."""
    _, part = connected_components(graph, directed=False)
    sizes = np.bincount(part)
    rows = np.split(np.argsort(part, kind="stable").astype(np.int64), np.cumsum(sizes)[:-1])
    return [rows[number] for number in np.argsort(-sizes, kind="stable")]


def start_vector(n: int, seed: int) -> Float64[np.ndarray, " row"]:
    """With which a solver begins."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).standard_normal(n)


def _of_part(graph: Matrix, components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest eigenpairs of a connected part; the first is exact."""
    n, degree = graph.shape[0], np.asarray(graph.sum(axis=1)).ravel()
    first = np.sqrt(degree) if n > 1 else np.ones(1)
    first = (first / np.linalg.norm(first))[:, None]
    if components == 1:
        return np.zeros(1), first
    matrix = laplacian(graph, normed=True)
    if n <= max(DENSE, 2 * components):
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        shifted = (2 * sparse.eye_array(n) - matrix).tocsr()
        values, vectors = largest_pairs(shifted, components, start_vector(n, seed))
        values = 2 - values
    rest = slice(1, components)
    return np.r_[0.0, np.clip(values[rest], 0, 2)], np.hstack([first, vectors[:, rest]])


def largest_pairs(
    matrix: Matrix | LinearOperator, count: int, start: Float64[np.ndarray, " row"]
) -> tuple[Float64[np.ndarray, " component"], Float64[np.ndarray, "row component"]]:
    """The largest eigenpairs of a symmetric matrix, descending, from a start vector, to 1e-10 of the largest.

    Raises:
        MethodError: if the solver does not converge.
    """
    try:
        values, vectors = eigsh(matrix, k=count, which="LA", v0=start, tol=1e-10)
    except ArpackNoConvergence as error:
        raise MethodError(
            f"{len(error.eigenvalues)} of {count} eigenvectors of a graph of {len(start)} rows converged, as eigenvalues lie too close: "
            "ask for fewer clusters, or take more `entries`"
        ) from error
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def placed(pieces: list[tuple[np.ndarray, np.ndarray]], chosen: np.ndarray, n: int) -> np.ndarray:
    """Eigenvectors of parts among all rows, those that were chosen."""
    firsts = np.cumsum([0, *(vector.shape[1] for _, vector in pieces)])
    out = np.zeros((n, len(chosen)))
    for column, which in enumerate(chosen):
        number = int(np.searchsorted(firsts, which, side="right")) - 1
        inside, vector = pieces[number]
        out[inside, column] = vector[:, which - firsts[number]]
    return out


def eigengap(values: Float64[np.ndarray, " component"]) -> tuple[int, float]:
    """The number of clusters after which the ascending eigenvalues jump most, at least 2, and that jump."""
    gaps = np.diff(values)[1:]
    best = int(np.argmax(gaps))
    return best + 2, float(gaps[best])


def row_normalised(vectors: Float64[np.ndarray, "row component"]) -> Float64[np.ndarray, "row component"]:
    """Rows of length 1; rows of zeros stay so."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)

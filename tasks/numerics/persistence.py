"""Persistent homology of few points, of dimensions 0 and 1, in the Vietoris-Rips filtration, and the bottleneck distance. CPU, NumPy.

Dimension 0 dies at the edges of the minimal spanning tree. Dimension 1 comes from the reduction of the coboundary of edges over two
elements, longest edge first (persistent cohomology: de Silva, Morozov, Vejdemo-Johansson, Inverse Problems 27 (2011) 124003); edges of the
tree are passed over, and nearly every other edge finds a triangle that is its own without any reduction.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from tasks.numerics import spanning_tree

Diagram = Float64[np.ndarray, "feature 2"]
Owner = tuple[int, int] | set[int]
"""An edge whose cofaces are its column as they are, or a column that others were added to."""


class Diagrams(NamedTuple):
    """Births and deaths of features that live at all."""

    parts: Diagram
    """Of dimension 0, all but the one part that stays."""
    loops: Diagram
    """Of dimension 1."""


def landmarks(distance: Float64[Tensor, "point point"], n: int) -> Int64[Tensor, " landmark"]:
    """Points that cover all: each is the farthest from those before, the first the one that is farthest on the mean."""
    if len(distance) <= n:
        return torch.arange(len(distance))
    table = distance.cpu().numpy()
    found = [int(table.mean(1).argmax())]
    near = table[found[0]]
    while len(found) < n:
        found.append(int(near.argmax()))
        near = np.minimum(near, table[found[-1]])
    return torch.tensor(found)


def rips(distance: Float64[Tensor, "point point"]) -> Diagrams:
    """The diagrams of some points.

    Cost: point^3 numbers of 8 bytes, a few of them at a time; less than point^2 steps in Python. Meant for up to about 100 points.
    """
    lengths = np.sort(spanning_tree.edges(distance).cpu().numpy())
    lengths = lengths[lengths > 0]
    return Diagrams(np.stack([np.zeros_like(lengths), lengths], axis=1), _loops(distance.cpu().numpy()))


def bottleneck(a: Float64[np.ndarray, "first 2"], b: Float64[np.ndarray, "second 2"]) -> float:
    """The least e such that features can be paired with none moved by more than e, to another feature or to birth = death.

    All features that live longer than 2e need a partner within e; a matching that serves both sides exists if one exists for each
    (Mendelsohn, Dulmage 1958). The distance is one of the moves, found by bisection.
    """
    moves = np.abs(a[:, None] - b[None]).max(2) if len(a) and len(b) else np.zeros((len(a), len(b)))
    alone = [(d[:, 1] - d[:, 0]) / 2 for d in (a, b)]
    steps = np.unique(np.concatenate([[0.0], moves.ravel(), *alone]))
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        near = moves <= steps[middle]
        fits = _served(near[alone[0] > steps[middle]]) and _served(near[:, alone[1] > steps[middle]].T)
        low, high = (low, middle) if fits else (middle + 1, high)
    return float(steps[low])


def _served(near: np.ndarray) -> bool:
    """Whether each row can have a column of its own."""
    if not len(near):
        return True
    if not near.any(1).all():
        return False
    return bool((maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).all())


def _loops(distance: np.ndarray) -> np.ndarray:
    n = len(distance)
    if n < 4:
        return np.zeros((0, 2))
    rank, length = _triangles(distance)
    first, found = rank.min(2), []
    owners: dict[int, Owner] = {}
    for i, j in _edges_to_reduce(distance):
        pivot, column = int(first[i, j]), None
        if pivot in owners:
            column = _cofaces(rank, i, j)
            while (pivot := min(column)) in owners:
                column ^= _column(owners[pivot], rank)
        owners[pivot] = (i, j) if column is None else column
        if length[pivot] > distance[i, j]:
            found.append((distance[i, j], length[pivot]))
    return np.array(sorted(found)).reshape(-1, 2)


def _triangles(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each triangle in the filtration, by its corners in any order, and lengths by place; n^3 where corners coincide."""
    n = len(distance)
    i, j, k = (corner.ravel() for corner in np.indices((n, n, n)))
    ascending = (i < j) & (j < k)
    i, j, k = i[ascending], j[ascending], k[ascending]
    longest = np.maximum(np.maximum(distance[i, j], distance[i, k]), distance[j, k])
    order = np.argsort(longest, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rank = np.full((n, n, n), n**3, dtype=np.int64)
    for corners in ((i, j, k), (i, k, j), (j, i, k), (j, k, i), (k, i, j), (k, j, i)):
        rank[corners] = place
    return rank, longest[order]


def _edges_to_reduce(distance: np.ndarray) -> list[tuple[int, int]]:
    """Edges that join what is joined already, longest first."""
    n = len(distance)
    i, j = np.triu_indices(n, 1)
    order, part, kept = np.argsort(distance[i, j], kind="stable"), np.arange(n), []
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if part[a] == part[b]:
            kept.append((a, b))
        else:
            part[part == part[b]] = part[a]
    return kept[::-1]


def _cofaces(rank: Int64[np.ndarray, "point point point"], i: int, j: int) -> set[int]:
    return {place for place in rank[i, j].tolist() if place < len(rank) ** 3}


def _column(owner: Owner, rank: np.ndarray) -> set[int]:
    return _cofaces(rank, *owner) if isinstance(owner, tuple) else owner

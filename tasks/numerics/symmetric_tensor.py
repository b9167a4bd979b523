"""Rank-one terms of a symmetric tensor of order 4 by the subspace power method.

T = sum over i of w_i v_i^(x4), with vectors of length 1. The flattening [d^2, d^2] of T has the span of the v_i (x) v_i as its range, if
there are no more than about d^2 / 2 terms. A v with v (x) v in the range is a maximum, of value 1, of F(v) = |P (v (x) v)|^2; power steps
v <- P(v (x) v) v + v / 2 climb to one from nearly any start. Its weight is 1 / (v (x) v).T^+(v (x) v); without it the rank is one less.

Kileel, Pereira, Subspace power method for symmetric tensor decomposition (2019), in its order 4 with a fixed shift.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

STEPS = 2000
"""Of a climb, at most."""


class Terms(NamedTuple):
    """Of a decomposition."""

    weight: Float64[Tensor, " term"]
    """Largest magnitude first."""
    vector: Float64[Tensor, "term feature"]
    """Rows of length 1."""
    value: Float64[Tensor, " term"]
    """F: 1 where the term lies in the tensor's range exactly."""
    residual: float
    """Frobenius norm of what the terms leave of the tensor, over that of the tensor."""


def fourth_cumulant(
    fourth: Float64[Tensor, "d d d d"], covariance: Float64[Tensor, "d d"]
) -> Float64[Tensor, "d d d d"]:
    """Of centred rows: their fourth moments less those of Gaussian rows with the same covariance."""
    pairs = torch.einsum("ab,cd->abcd", covariance, covariance)
    return fourth - pairs - pairs.permute(0, 2, 1, 3) - pairs.permute(0, 2, 3, 1)


def decompose(tensor: Float64[Tensor, "d d d d"], rank: int, starts: int, seed: int) -> Terms:
    """Term after term, each the best of seeded starts, from what the terms before have left.

    Args:
        tensor: symmetric.
        rank: terms; fewer are found where the flattening has no such rank.
        starts: climbs for each term.
        seed: of the starts.

    Cost: for each term a decomposition O(d^6), and starts * steps * rank * d^2.
    """
    d = tensor.shape[0]
    matrix = tensor.reshape(d * d, d * d)
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)[:rank]
    order = (
        order[values[order].abs() > 1e-12 * values.abs().max()]
        if float(values.abs().max()) > 0
        else order[:0]
    )
    values, basis = values[order], vectors[:, order]
    generator = torch.Generator().manual_seed(seed)
    core = torch.diag(values)
    weights, found, reached = [], [], []
    while len(core):
        begun = torch.randn(starts, d, dtype=torch.float64, generator=generator).to(tensor.device)
        v, value = _climb(basis, begun)
        inside = basis.T @ torch.outer(v, v).flatten()
        solved = torch.linalg.solve(core, inside)
        weight = 1 / inside.dot(solved)
        weights.append(weight)
        found.append(v)
        reached.append(value)
        core, basis = _deflated(core - weight * torch.outer(inside, inside), basis, solved)
    return _terms(matrix, weights, found, reached)


def _climb(basis: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The best end of climbs from each start: shifted power steps on F(v) = |B^T (v (x) v)|^2."""
    d = v.shape[1]
    slices = basis.T.reshape(-1, d, d)
    v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    for _ in range(STEPS):
        moved = torch.einsum("kab,nb->nka", slices, v)
        inside = torch.einsum("nka,na->nk", moved, v)
        following = torch.einsum("nk,nka->na", inside, moved) + 0.5 * v
        following = following / torch.linalg.vector_norm(following, dim=1, keepdim=True)
        apart = float((following - v).abs().max())
        v = following
        if apart < 1e-14:
            break
    inside = torch.einsum("kab,na,nb->nk", slices, v, v)
    value = inside.square().sum(1)
    best = int(value.argmax())
    return v[best], value[best]


def _deflated(core: Tensor, basis: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The same matrix in one dimension less: `gone` is in the kernel of the core, which is symmetric."""
    k = len(core)
    unit = gone / torch.linalg.vector_norm(gone)
    full = torch.linalg.qr(
        torch.cat([unit[:, None], torch.eye(k, dtype=core.dtype, device=core.device)], 1)
    ).Q
    kept = full[:, 1:k]
    lower = kept.T @ core @ kept
    return (lower + lower.T) / 2, basis @ kept


def _terms(matrix: Tensor, weights: list[Tensor], found: list[Tensor], reached: list[Tensor]) -> Terms:
    d = round(len(matrix) ** 0.5)
    if not found:
        none = matrix.new_zeros(0)
        return Terms(none, matrix.new_zeros(0, d), none, 1.0 if float(matrix.abs().max()) > 0 else 0.0)
    weight, vector, value = torch.stack(weights), torch.stack(found), torch.stack(reached)
    order = weight.abs().argsort(descending=True)
    weight, vector, value = weight[order], vector[order], value[order]
    squares = torch.einsum("ta,tb->tab", vector, vector).flatten(1)
    left = matrix - (squares.T * weight) @ squares
    return Terms(
        weight, vector, value, float(torch.linalg.matrix_norm(left) / torch.linalg.matrix_norm(matrix))
    )

"""One narrow input map for several linear maps of the same input: errors of every rank, bounds, and which maps may share.

Maps W_1, W_2, ... [output, input] of an input with second moment G are stacked along their outputs to W. With G = S S^T, of all maps of
rank r the one nearest to W in E|W x - W' x|^2 is W' = U_r U_r^T W, U the left singular vectors of W S (those of the outputs' moment
W G W^T), and what it loses is the sum of the squared singular values beyond r. The right factor U_r^T W is shared by all maps, so that
rank r costs r (inputs + all outputs) numbers.

For matrices A_1, A_2, ... with the same columns, stacked along their rows to C, and e_r(.) the sum of squared singular values beyond r:

    lower      e_r(C) >= sum_j e_r(A_j)                                  a rank-r map of C is one of each A_j
    Weyl       e_r(C) <= sum_j |A_j|^2 - max_j sum_{k <= r} s_k(A_j)^2   singular values grow with rows that are added
    residual   e_r(C) <= sum_j e_{r_j}(A_j (I - V_j V_j^T)),  r = sum_j r_j, V_j the right singular vectors that were taken of the
               residuals before j: the rank-r map on all of V loses no more of any A_j than was left when its turn was over

Source of the bounds: Shamrai 2026 (Concatenated Matrix SVD), transposed and restated from its abstract. The output form of the
weighted decomposition is that of `layer_factors`.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import budget, layer_factors
from tasks.numerics.budget import Ways

Matrix = Float64[Tensor, "_ column"]
"""Of any height."""
Squares = Float64[Tensor, " _"]
"""Squared singular values, falling."""

SPLITS = 9
"""Numbers of directions that are tried for each matrix of a residual bound."""


class Factors(NamedTuple):
    """W' = left[:, :r] right[:r] for every r."""

    left: Float64[Tensor, "output order"]
    """Orthonormal columns."""
    right: Float64[Tensor, "order input"]
    squared: Squares
    """E of the squared output along each column of `left`, falling: what lies beyond r is lost at rank r."""


def joint_factors(
    weight: Float64[Tensor, "output input"], root: Float64[Tensor, "input component"]
) -> Factors:
    """The factors of all ranks, those of `layer_factors.factored`, with what each component holds.

    Args:
        weight: the maps stacked along their outputs.
        root: S with S S^T = G; G may be singular. Components beyond what rows show are of the weights that rows do not see.

    Raises:
        MethodError: if a decomposition fails.

    Cost: outputs inputs min(outputs, inputs).
    """
    found = layer_factors.factored(weight, root)
    return Factors(found.left, found.right, (found.right @ root).square().sum(1))


def lost(squared: Squares) -> Squares:
    """What ranks 0, 1, ... lose: sums of the squares beyond each; the last is 0."""
    return torch.cat([squared.flip(0).cumsum(0).flip(0), squared.new_zeros(1)])


def at_rank(losses: Squares, rank: int) -> float:
    """A loss at a rank that may be beyond all components."""
    return float(losses[min(rank, len(losses) - 1)])


def dealt(squares: Sequence[Squares], costs: Sequence[int], numbers: float) -> tuple[int, ...]:
    """Ranks of several matrices with the least sum of losses, as `budget.dealt` finds them.

    Args:
        squares: squared singular values of each, falling.
        costs: numbers that a component of each takes.
        numbers: to spend.
    """
    ways = [
        Ways(cost * np.arange(len(s) + 1.0), lost(s).double().cpu().numpy())
        for s, cost in zip(squares, costs, strict=True)
    ]
    return tuple(budget.dealt(ways, numbers))


def lower_bound(squares: Sequence[Squares], rank: int) -> float:
    """No basis of that rank loses less than each matrix's own, over all."""
    return math.fsum(at_rank(lost(s), rank) for s in squares)


def weyl_bound(squares: Sequence[Squares], rank: int) -> float:
    """The best basis of all loses no more than that of one matrix which serves the others not at all."""
    return math.fsum(float(s.sum()) for s in squares) - max(float(s[:rank].sum()) for s in squares)


def residual_bound(matrices: Sequence[Matrix], rank: int) -> float:
    """The best basis of that rank of all matrices loses no more.

    One matrix after the other gives directions to the basis, from what those before have left of it. The bound holds for any numbers of
    directions; of `SPLITS` numbers each matrix gives the one that serves it and all that follow, taken as one, best.

    Cost: m decompositions of [row, column] and at most `SPLITS` m sets of eigenvalues of [column, column], for m matrices.
    """
    total, remaining = 0.0, [_reduced(m) for m in matrices]
    while remaining:
        first, rest = remaining[0], remaining[1:]
        _, s, v = torch.linalg.svd(first)
        losses = lost(s.square())
        mine = _split(losses, v, torch.cat(rest), rank) if rest else rank
        total += at_rank(losses, mine)
        basis = v[: min(mine, len(s))]
        remaining = [m - (m @ basis.T) @ basis for m in rest]
        rank -= len(basis)
    return total


def _split(losses: Squares, v: Float64[Tensor, "column column"], rest: Matrix, rank: int) -> int:
    """How many of the right singular vectors v of a matrix go into a basis of that rank which serves the rest too."""
    most = min(rank, len(losses) - 1)
    turned = rest @ v.T
    products = turned.T @ turned

    def together(mine: int) -> float:
        outside = torch.linalg.eigvalsh(products[mine:, mine:]).clamp(min=0)  # ascending
        return at_rank(losses, mine) + float(outside[: max(0, len(outside) - (rank - mine))].sum())

    return min(sorted({round(most * k / (SPLITS - 1)) for k in range(SPLITS)}), key=together)


class Group(NamedTuple):
    """Matrices that share one basis."""

    members: tuple[int, ...]
    error: float
    """Squares lost over all squares, of the decomposition of all members together."""
    bound: float
    """The residual bound of the last merge, as a share too; that of one matrix is its error."""


def grouped(matrices: Sequence[Matrix], tolerance: float, rank: int) -> tuple[Group, ...]:
    """Groups that lose no more than tolerated: the two whose bound is the smallest share merge, as long as one is allowed.

    Only what the residual bound allows is tried, and it becomes a group after its true decomposition has confirmed it.

    Args:
        matrices: [output, column] each.
        tolerance: the largest error of a group, |C - C_r| / |C|.
        rank: of the basis of each group.

    Raises:
        MethodError: if a true error is above its bound, so that a decomposition has failed.

    Cost: m^2 to m^3 decompositions of [rows of two groups, column] at most, rows bounded by columns.
    """
    groups = [_single(k, m, rank) for k, m in enumerate(matrices)]
    stacks = [_reduced(m) for m in matrices]
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    while len(groups) > 1:
        allowed = []
        for i, j in combinations(range(len(groups)), 2):
            pair = (groups[i].members, groups[j].members)
            if pair not in known:
                known[pair] = _share(stacks[i], stacks[j], rank)
            if known[pair] <= tolerance**2:
                allowed.append((known[pair], i, j))
        if not allowed:
            break
        bound, i, j = min(allowed)
        both = torch.cat([stacks[i], stacks[j]])
        groups[i] = _confirmed(groups[i].members + groups[j].members, both, rank, bound)
        stacks[i] = _reduced(both)
        del groups[j], stacks[j]
    return tuple(groups)


def _single(k: int, matrix: Matrix, rank: int) -> Group:
    squared = torch.linalg.svdvals(matrix).square()
    error = _ratio(at_rank(lost(squared), rank), float(squared.sum()))
    return Group((k,), error, error)


def _reduced(matrix: Matrix) -> Matrix:
    """As few rows as there are columns, with the same products of columns."""
    return torch.linalg.qr(matrix, mode="r").R if len(matrix) > matrix.shape[1] else matrix


def _share(a: Matrix, b: Matrix, rank: int) -> float:
    """The bound over the squares."""
    return _ratio(residual_bound([a, b], rank), float(a.square().sum() + b.square().sum()))


def _confirmed(members: tuple[int, ...], both: Matrix, rank: int, bound: float) -> Group:
    squared = torch.linalg.svdvals(both).square()
    error = _ratio(at_rank(lost(squared), rank), float(squared.sum()))
    if error > bound + 1e-10:
        raise MethodError(
            f"matrices {', '.join(map(str, members))} lose a share of {error:.3e} at rank {rank}, above the bound of {bound:.3e}: a "
            "singular value decomposition of this torch build has failed"
        )
    return Group(tuple(sorted(members)), error, bound)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0

"""Next-token distributions as few numbers: log-probabilities lie in the span of the unembedding's columns and the constant.

With logits W h + b, log p - b = W h - c 1 is A (h, -c) for A = [W, 1], so that as many of its entries as A has rank tell all others. Which
entries, a QR decomposition of A^T with column pivoting chooses: those whose rows of A are far from dependent.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from scipy.linalg import qr, solve_triangular
from torch import Tensor


class Choice(NamedTuple):
    """Tokens that tell all others."""

    tokens: Int64[Tensor, " number"]
    """By falling independence."""
    solver: Float64[Tensor, "number coefficient"]
    """Log-probabilities of the tokens, less their biases, times this are the coefficients of A's columns."""
    values: Float64[Tensor, " coefficient"]
    """Singular values of A, whose last column has the size of the others."""
    condition: float
    """Of the chosen rows of A."""
    growth: float
    """No log-probability is further off than this times the largest error of the numbers that are kept."""


def design(weight: Float[Tensor, "token feature"]) -> Float64[Tensor, "token coefficient"]:
    """A: the unembedding, and a constant column of the columns' mean size."""
    exact = weight.double()
    size = float(exact.square().mean().sqrt())
    return torch.cat([exact, exact.new_full((len(exact), 1), size if size > 0 else 1.0)], 1)


def choose(weight: Float[Tensor, "token feature"]) -> Choice:
    """Choose tokens; on the CPU, whatever the device.

    Cost: 2 token feature^2, and three matrices of token by feature in float64.
    """
    a = design(weight)
    q, r, order = qr(a.cpu().numpy().T, mode="economic", pivoting=True)
    sizes = abs(r.diagonal())
    rank = int((sizes > max(a.shape) * torch.finfo(torch.float64).eps * sizes[0]).sum())
    leading = r[:rank, :rank]
    inverse = solve_triangular(leading, q[:, :rank].T)
    others = solve_triangular(leading, r[:rank, rank:])
    kept = torch.linalg.svdvals(torch.from_numpy(leading.copy()))
    return Choice(
        tokens=torch.from_numpy(order[:rank].astype("int64")).to(weight.device),
        solver=torch.from_numpy(inverse).to(weight.device),
        values=torch.linalg.svdvals(torch.from_numpy(r)).to(weight.device),
        condition=float(kept[0] / kept[-1]),
        growth=max(1.0, float(abs(others).sum(0).max(initial=0.0))),
    )


def growth_of(weight: Float[Tensor, "token feature"], tokens: Int64[Tensor, " number"]) -> float:
    """`Choice.growth` of tokens that were chosen otherwise, as many as A has rank; infinite where they do not tell the others.

    Cost: as `choose`.
    """
    a = design(weight)
    some = a[tokens]
    if torch.linalg.matrix_rank(some) < torch.linalg.matrix_rank(a.T @ a):
        return math.inf
    return float(
        torch.linalg.lstsq(some.T, a.T, driver="gelsd" if not a.is_cuda else None).solution.abs().sum(0).max()
    )


def expand(
    numbers: Float64[Tensor, "row number"],
    choice: Choice,
    weight: Float[Tensor, "token feature"],
    bias: Float[Tensor, " token"] | None = None,
) -> Float64[Tensor, "row token"]:
    """All log-probabilities from those of the chosen tokens."""
    own = numbers if bias is None else numbers - bias.double()[choice.tokens]
    found = own @ choice.solver @ design(weight).T
    return found if bias is None else found + bias.double()

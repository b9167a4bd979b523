"""Linear maps that carry one state to the next, from joint moments of pairs: extended dynamic mode decomposition.

Pairs (x, y) are states of a row before and after a step, as vectors of observables. With C the covariances about the means, the least-
squares map y - mean = K (x - mean) is K = C_yx C_xx^-1; truncated to rank r, the inverse is that on the r leading eigenvectors of C_xx.
The constant observable is thereby part of the dictionary, with eigenvalue 1.

An eigenfunction w.(x - mean) of K has the residual E|w.(y - mean) - lambda w.(x - mean)|^2 / E|w.(x - mean)|^2, exactly from the moments:
an eigenvalue with a large one belongs to the dictionary and not to the dynamics (Colbrook, Townsend, CPAM 77 (2024) 221).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from tasks.numerics import joint_moments
from tasks.numerics.joint_moments import State

FLOOR = 1e-13
"""Eigenvalues of C_xx below this share of the largest are rounding."""


class Modes(NamedTuple):
    """Eigenvalues of a map on the leading directions of its inputs, largest modulus first; of a pair the one above the axis first."""

    value: Complex[Tensor, " mode"]
    residual: Float64[Tensor, " mode"]
    """Root of the residual: 0 for an exact eigenfunction; below 1e-7 it is rounding."""


class Parts(NamedTuple):
    """Covariances of pairs."""

    xx: Float64[Tensor, "left left"]
    yx: Float64[Tensor, "right left"]
    yy: Float64[Tensor, "right right"]


def parts(state: State, shift: Tensor | None = None) -> Parts:
    """Mean products of the rows of joint moments about a shift, their mean by default."""
    about = joint_moments.centred(state) if shift is None else joint_moments.move(state, shift)
    left, g = int(state["left"]), about["g"] / about["n"]
    return Parts(g[:left, :left], g[left:, :left], g[left:, left:])


def ranks(width: int) -> list[int]:
    """Ranks that are tried: 1, 2, 4, .. and all."""
    return sorted({*(1 << power for power in range(width.bit_length()) if 1 << power <= width), width})


def held_out_error(train: State, test: State, outputs: int) -> Float64[Tensor, " rank"]:
    """Mean squared error of the first outputs on rows that were not used, for each of `ranks`; the last entry is that of the mean alone.

    Ranks beyond what C_xx determines give what the largest determined one does. Cost: O(feature^3).
    """
    known = parts(train)
    left = len(known.xx)
    new = parts(test, train["c"] + train["s"] / train["n"])
    values, u = torch.linalg.eigh(known.xx)
    values, u = values.flip(0), u.flip(1)
    kept = values > FLOOR * float(values[0].clamp(min=0)) if float(values[0]) > 0 else values > math.inf
    inverse = torch.where(kept, 1 / values.where(kept, 1.0), 0.0)
    m = known.yx[:outputs] @ u * inverse
    along = (m * (new.yx[:outputs] @ u)).sum(0).cumsum(0)
    square = ((m.T @ m) * (u.T @ new.xx @ u)).cumsum(0).cumsum(1).diagonal()
    spread = new.yy.diagonal()[:outputs].sum()
    places = torch.tensor([r - 1 for r in ranks(left)], device=spread.device)
    return torch.cat([(spread - 2 * along + square)[places], spread[None]]).clamp(min=0)


def identity_error(test: State, outputs: int) -> float:
    """Mean of |y - x|^2 over rows and the first outputs."""
    found = parts(test, torch.zeros_like(test["c"]))
    both = found.xx.diagonal() + found.yy.diagonal() - 2 * found.yx.diagonal()
    return max(0.0, float(both[:outputs].sum()))


def modes(state: State, rank: int) -> Modes:
    """Of the map between states of one dictionary, on the leading directions of x.

    Cost: O(feature^3).
    """
    found = parts(state)
    values, u = torch.linalg.eigh(found.xx)
    kept = min(rank, int((values > FLOOR * float(values[-1])).sum())) if float(values[-1]) > 0 else 0
    if not kept:
        none = torch.zeros(0, dtype=torch.float64, device=values.device)
        return Modes(none.to(torch.complex128), none)
    root = u[:, -kept:] * values[-kept:].rsqrt()  # whitens x
    step = root.T @ found.yx @ root  # of whitened x; its left eigenvectors are the eigenfunctions
    value, w = torch.linalg.eig(step.T)
    order = torch.argsort(value.abs(), descending=True, stable=True)
    value, w = value[order], w[:, order]
    late = (root.T @ found.yy @ root).to(w.dtype)
    square = (w.conj() * (late @ w)).sum(0).real
    cross = (w.conj() * (step.to(w.dtype) @ w)).sum(0)
    norm = w.abs().square().sum(0)
    residual = square - 2 * (value.conj() * cross.conj()).real + value.abs().square() * norm
    return Modes(value, (residual.clamp(min=0) / norm).sqrt())


def entropy(covariance: Float[Tensor, "feature feature"]) -> float:
    """Of the eigenvalues of a covariance as shares of its trace, in nats (von Neumann); NaN without variance."""
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    total = values.sum()
    return float(torch.special.entr(values / total).sum()) if float(total) > 0 else math.nan

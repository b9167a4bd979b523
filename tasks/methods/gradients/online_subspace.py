"""A subspace of gradients learnt online, step by step, beside what the best one would hold.

Rows are gradients of one matrix, drawn in a seeded order. The projection P goes down the gradient of |G P P' - G|^2 with G scaled to
norm 1: no singular value decomposition is ever taken of a gradient.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import matrices
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State

VERSION = 1
KIND = "sequential"
READS = {"x": RowsPort()}
ARRAYS = {"basis": ("component", "feature"), "captured": ("pass",)}
REFERENCE = (
    "Liang et al.: Memory-Efficient LLM Training with Online Subspace Descent (2024), equation 6: descent on the reconstruction "
    "error of scaled gradients, with the regulariser |P'P - I|^2 of the paper as an option (the authors' code has none)"
)
SEEDS = (30,)


class Config(Frozen):
    """The size of the subspace, and how it is learnt."""

    rank: int = Field(default=4, ge=1)
    """r: columns of P; no more than the smaller side of the matrix."""
    learning_rate: float = Field(default=0.5, gt=0)
    """Of the descent; divided by 1 + step / 100."""
    regularise: float = Field(default=0.0, ge=0)
    """Weight of |P'P - I|^2."""
    passes: int = Field(default=5, ge=1, le=1000)
    """Times that every gradient is seen."""
    seed: int = 0
    """Of the first P and of the order."""


class Result(Frozen):
    """Shares of squared norm lie in [0, 1]; None without gradients."""

    n_steps: int
    """Gradients seen, over all passes."""
    rows: int
    columns: int
    rank: int
    """Used."""
    captured: float | None
    """Mean share of a gradient inside the subspace in the last pass, measured before it was used."""
    captured_first: float | None
    """The same in the first pass."""
    captured_best: float | None
    """Share that the best fixed subspace of this rank holds, of scaled gradients."""
    captured_null: float
    """Of a random subspace, r / features."""
    distance: float | None
    """Sine of the largest angle to the best subspace."""
    caveats: tuple[str, ...]


def start(inputs: Inputs, config: Config) -> State:
    """A random orthonormal P, and nothing seen."""
    m, n = matrices.sides(inputs)
    side = n if n > 1 else m
    rank = min(config.rank, side)
    drawn = torch.randn(side, rank, generator=torch.Generator().manual_seed(config.seed), dtype=torch.float64)
    return {
        "p": torch.linalg.qr(drawn).Q.contiguous(),
        "scatter": torch.zeros(side, side, dtype=torch.float64),
        "captured": torch.zeros(config.passes, dtype=torch.float64),
        "seen": torch.zeros(config.passes, dtype=torch.float64),
        "shape": torch.tensor([m, n]),
        "pass": torch.tensor(-1),
        "steps": torch.tensor(0),
    }


def passes(config: Config) -> int:
    """As asked."""
    return config.passes


def batch_rows(config: Config) -> int:
    """Gradients of a batch; each is one step all the same."""
    return 64


def begin_pass(state: State, number: int, config: Config) -> State:
    """Count into the next pass."""
    return state | {"pass": torch.tensor(number)}


def step(block: Block, state: State, config: Config) -> State:
    """One step of descent for each gradient."""
    p, captured, seen = state["p"], state["captured"].clone(), state["seen"].clone()
    scatter, steps, number = state["scatter"].clone(), int(state["steps"]), max(0, int(state["pass"]))
    m, n = state["shape"].tolist()
    for row in block["x"]:
        g = row.double().reshape(m, n) if n > 1 else row.double()[None]
        size = torch.linalg.vector_norm(g)
        if float(size) == 0:
            continue
        g = g / size
        captured[number] += _inside(g, p)
        seen[number] += 1
        if number == 0:
            scatter += g.T @ g
        steps += 1
        p = p - config.learning_rate / (1 + steps / 100) * _slope(g, p, config.regularise)
    return state | {
        "p": p,
        "captured": captured,
        "seen": seen,
        "scatter": scatter,
        "steps": torch.tensor(steps),
    }


def _inside(g: Tensor, p: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(p).Q
    return (g @ basis).square().sum()


def _slope(g: Tensor, p: Tensor, regularise: float) -> Tensor:
    """The gradient of (1/2) |G P P' - G|^2 and of (weight / 4) |P'P - I|^2 with respect to P."""
    gp = g @ p
    error = gp @ p.T - g
    slope = g.T @ (error @ p) + error.T @ gp
    identity = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    return slope + regularise * p @ (p.T @ p - identity)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The subspace, beside the best one of the gradients seen."""
    basis = torch.linalg.qr(state["p"]).Q
    values, vectors = torch.linalg.eigh(state["scatter"])
    rank, total = basis.shape[1], float(values.sum())
    share = state["captured"] / state["seen"]
    best = vectors[:, -rank:]
    outside = basis - best @ (best.T @ basis)
    some = total > 0
    m, n = state["shape"].tolist()
    arrays = {
        "basis": Array(basis.T.contiguous(), ARRAYS["basis"]),
        "captured": Array(share, ARRAYS["captured"]),
    }
    last = share[state["seen"] > 0]
    return Result(
        n_steps=int(state["steps"]),
        rows=m,
        columns=n,
        rank=rank,
        captured=float(last[-1]) if len(last) else None,
        captured_first=float(last[0]) if len(last) else None,
        captured_best=float(values[-rank:].sum()) / total if some else None,
        captured_null=rank / len(basis),
        distance=float(torch.linalg.matrix_norm(outside, 2)) if some else None,
        caveats=matrices.caveats(inputs),
    ), arrays

"""The dimension of a trajectory, and whether what happens outside of it commutes.

Rows are weights of one matrix in order. Beside the components that hold 95 % of the variance stands the number that a random walk
needs. The commutators of square updates are compared with the trajectory's subspace: a share below that of a random subspace says
that the order of updates matters outside of it.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram, walk

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"share": ("component",), "null_share": ("component",), "commutator_share": ("pair",)}
REFERENCE = (
    "Low-Dimensional Execution Manifolds in Transformer Learning Dynamics: Evidence from Modular Arithmetic Tasks (2026): components "
    "for 95 % of a trajectory, alignment of commutators; formulas reconstructed from the abstract. Null: Antognini, Sohl-Dickstein, "
    "NeurIPS 2018"
)
SEEDS = (250,)
MAX_ROWS = 4096
MOST_PAIRS = 200


class Config(Frozen):
    """What counts as held."""

    variance: float = Field(default=0.95, gt=0, lt=1)
    """Share of the variance that the counted components hold."""
    draws: int = Field(default=20, ge=5, le=500)
    """Simulated walks."""
    seed: int = 0
    """Of the walks, and of the pairs whose commutators are taken."""


class Result(Frozen):
    """None where nothing moved, or rows are no square matrices."""

    n_rows: int
    width: int
    components: int | None
    """Fewest principal components that hold the asked share of the trajectory's variance."""
    components_null: int
    """The same of a walk of as many steps in infinitely many dimensions."""
    components_null_low: int
    components_null_high: int
    """The 2.5 and 97.5 percentiles of simulated walks with the participation ratio of the steps about their mean as dimension."""
    lower_than_walk: bool | None
    """Whether fewer components are needed than in nearly all walks: only then is the trajectory low-dimensional for more than being one."""
    three_share: float | None
    """Share of the first three components: a random walk has 83 %."""
    commutator_share: float | None
    """Mean share of the squared norm of commutators [A_s, A_t] of updates inside the trajectory's subspace."""
    commutator_null: float | None
    """The same of random matrices, k / width."""
    commutator_size: float | None
    """Mean |[A, B]| / (2 |A| |B|): 0 for updates that commute."""
    pairs: int
    """Commutators taken."""
    residual: float
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Positions that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Components and commutators.

    Raises:
        MethodError: for fewer than three positions.

    Cost: row^2 feature + row^3, and for square matrices up to 200 products of each pair.
    """
    x = matrices.in_order(block)
    if len(x) < 3:
        raise MethodError(f"found {len(x)} positions; a trajectory of at least 3 is needed")
    found = gram.components(x, center=True)
    shares = found.variances.cpu() / found.total if found.total else torch.zeros(0, dtype=torch.float64)
    k = _needed(shares, config.variance) if len(shares) else None
    inside, size = _commutators(x, found, k or 0, inputs, config)
    arrays = {
        "share": shares,
        "null_share": walk.expected_shares(len(x), len(shares)),
        "commutator_share": inside,
    }
    return _result(x, shares, k, (inside, size), found.residual, inputs, config), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _needed(shares: Tensor, variance: float) -> int:
    return int((shares.cumsum(0) < variance - 1e-12).sum()) + 1


def _commutators(
    x: Tensor, found: gram.Components, k: int, inputs: Inputs, config: Config
) -> tuple[Tensor, Tensor]:
    """Share inside the trajectory's first k directions, and relative size, of commutators of updates."""
    m, n = matrices.sides(inputs)
    none = torch.zeros(0, dtype=torch.float64)
    steps = [step for step in (x[1:].double() - x[:-1].double()) if bool(step.any())]
    if m != n or m < 2 or k == 0 or len(steps) < 2:
        return none, none
    basis = gram.directions(x, found, k, center=True)
    inside, size = [], []
    for a, b in _pairs(len(steps), config.seed):
        first, second = steps[a].reshape(m, m), steps[b].reshape(m, m)
        commutator = (first @ second - second @ first).flatten()
        norm = torch.linalg.vector_norm(commutator)
        if float(norm) > 0:
            inside.append((basis @ commutator).square().sum() / norm.square())
            size.append(norm / (2 * torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)))
    return (torch.stack(inside), torch.stack(size)) if inside else (none, none)


def _pairs(n: int, seed: int) -> list[tuple[int, int]]:
    every = [(a, b) for a in range(n) for b in range(a)] if n <= 64 else None
    generator = torch.Generator().manual_seed(seed)
    if every is None:
        drawn = torch.randint(0, n, (4 * MOST_PAIRS, 2), generator=generator).tolist()
        every = list(dict.fromkeys((max(p), min(p)) for p in drawn if p[0] != p[1]))
    order = torch.randperm(len(every), generator=generator).tolist()
    return [every[i] for i in order[:MOST_PAIRS]]


def _result(
    x: Tensor,
    shares: Tensor,
    k: int | None,
    commutators: tuple[Tensor, Tensor],
    residual: float,
    inputs: Inputs,
    config: Config,
) -> Result:
    inside, size = commutators
    dimension = gram.participation(x[1:].double() - x[:-1].double(), center=True) or math.inf
    walks = walk.simulated_shares(len(x), dimension, len(x) - 1, config.draws, config.seed)
    needed = torch.tensor([_needed(row, config.variance) for row in walks], dtype=torch.float64)
    low = int(needed.quantile(0.025))
    square = matrices.sides(inputs)[0] == matrices.sides(inputs)[1]
    return Result(
        n_rows=len(x),
        width=x.shape[1],
        components=k,
        components_null=_needed(walk.expected_shares(len(x), len(x) - 1), config.variance),
        components_null_low=low,
        components_null_high=int(needed.quantile(0.975).ceil()),
        lower_than_walk=None if k is None else k < low,
        three_share=float(shares[:3].sum()) if k is not None else None,
        commutator_share=float(inside.mean()) if len(inside) else None,
        commutator_null=(k or 0) / x.shape[1] if len(inside) else None,
        commutator_size=float(size.mean()) if len(size) else None,
        pairs=len(inside),
        residual=residual,
        caveats=() if square else ("rows are no square matrices: they have no commutators",),
    )

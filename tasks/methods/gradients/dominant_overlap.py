"""How much the dominant subspace of a gradient moves from step to step, beside what random subspaces would share.

Rows are gradients (or updates) of one matrix in order. Overlap is (1 / r) |U_t' U_s|_F^2 of the leading r left singular vectors: 1
for a frozen subspace, r / m for unrelated ones. Steps of a rank below r are compared with what they have: of two dimensions the larger
divides, and chance is the smaller over m.
"""

from itertools import pairwise
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices, steps
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort

VERSION = 4
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"adjacent": ("pair",), "to_first": ("row",), "to_last": ("row",), "step": ("row",)}
REFERENCE = (
    "Zhang et al.: Breaking the Frozen Subspace: Importance Sampling for Low-Rank Optimization in LLM Pretraining (2025): overlap of "
    "adjacent subspaces, and sampling of singular vectors by their singular values (variant `sampled`, without replacement)"
)
SEEDS = (74,)
MAX_ROWS = 4096


class Config(Frozen):
    """Which subspace of each step."""

    rank: int = Field(default=8, ge=1)
    """r: singular vectors of a step; no more than the matrix has rows."""
    variant: Literal["dominant", "sampled"] = "dominant"
    """The leading vectors, or r of them drawn with probabilities in proportion to their singular values."""
    seed: int = 0
    """Of the draw."""


class Result(Frozen):
    """Overlaps lie in [0, 1]; None where there are too few steps."""

    n_rows: int
    rows: int
    """Of the matrix."""
    columns: int
    rank: int
    """Used: at most the smaller side."""
    adjacent: float | None
    """Mean overlap of neighbouring steps."""
    adjacent_low: float | None
    adjacent_high: float | None
    """Quartiles over the steps."""
    first_last: float | None
    """Overlap of the first and the last step."""
    first_last_null: float
    """Expected, were they unrelated."""
    null: float
    """Expected overlap of unrelated subspaces, on average over neighbouring steps: r / m where all have r dimensions."""
    null_std: float
    """Standard deviation of the overlap of two unrelated subspaces, the largest over neighbouring steps."""
    frozen: bool | None
    """Whether neighbours overlap by more than half of what lies between chance and a frozen subspace."""
    empty_steps: int
    """Steps whose gradient has a rank below r; they are compared with what they have."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Steps that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The subspaces of all steps and their overlaps.

    Raises:
        MethodError: for no rows at all.

    Cost: a singular value decomposition per step, out x in x min(out, in), and r x out numbers kept per step.
    """
    x, (m, n) = matrices.in_order(block), matrices.sides(inputs)
    if len(x) == 0:
        raise MethodError("found no steps; gradients of at least one step are needed")
    rank = min(config.rank, m, n)
    bases = [_basis(row.reshape(m, n), rank, config, step) for step, row in enumerate(x)]
    adjacent = torch.tensor([matrices.overlap(a, b) for a, b in pairwise(bases)], dtype=torch.float64)
    arrays = {
        "adjacent": adjacent,
        "to_first": torch.tensor([matrices.overlap(bases[0], b) for b in bases], dtype=torch.float64),
        "to_last": torch.tensor([matrices.overlap(bases[-1], b) for b in bases], dtype=torch.float64),
        "step": steps.in_order(block),
    }
    result = _result(bases, adjacent, arrays, rank, (m, n), inputs)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _basis(matrix: Tensor, rank: int, config: Config, step: int) -> Tensor:
    if config.variant == "dominant":
        return matrices.left_basis(matrix, rank)
    u, s, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    total = float(s.sum())
    if total == 0:
        return matrix.new_zeros(0, len(matrix)).double()
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((config.seed, step))))
    weight = s.cpu().numpy() / total
    chosen = generator.choice(len(s), size=min(rank, int((weight > 0).sum())), replace=False, p=weight)
    basis: Tensor = u[:, torch.from_numpy(np.sort(chosen)).to(u.device)].T
    return basis


def _result(
    bases: list[Tensor],
    adjacent: Tensor,
    arrays: dict[str, Tensor],
    rank: int,
    shape: tuple[int, int],
    inputs: Inputs,
) -> Result:
    m = shape[0]
    by_chance = [matrices.chance(len(a), len(b), m) for a, b in pairwise(bases)] or [
        matrices.chance(rank, rank, m)
    ]
    null = fmean(mean for mean, _ in by_chance)
    some = len(adjacent) > 0
    return Result(
        n_rows=len(bases),
        rows=shape[0],
        columns=shape[1],
        rank=rank,
        adjacent=float(adjacent.mean()) if some else None,
        adjacent_low=float(adjacent.quantile(0.25)) if some else None,
        adjacent_high=float(adjacent.quantile(0.75)) if some else None,
        first_last=float(arrays["to_first"][-1]) if some else None,
        first_last_null=matrices.chance(len(bases[0]), len(bases[-1]), m)[0],
        null=null,
        null_std=max(std for _, std in by_chance),
        frozen=bool(adjacent.mean() > (1 + null) / 2) if some and rank < m else None,
        empty_steps=sum(len(basis) < rank for basis in bases),
        caveats=matrices.caveats(inputs),
    )

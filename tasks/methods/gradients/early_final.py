"""How low-rank the update of a training is, and how early its final subspace shows.

Rows are weights of one matrix in order. The cumulative update of step t is W_t - W_0; its leading left singular vectors are compared
with those of the last step.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices, steps
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort

VERSION = 3
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "overlap": ("row",), "concentration": ("row",), "norm": ("row",), "cosine": ("row",), "step": ("row",),
}  # fmt: skip
REFERENCE = (
    "Learning to Foresee: Unveiling the Unlocking Efficiency of On-Policy Distillation (2025): concentration of updates in few "
    "singular directions, and overlap of early with final update subspaces; formulas reconstructed from the abstract"
)
SEEDS = (259,)
MAX_ROWS = 4096


class Config(Frozen):
    """The size of the subspace, and what counts as early."""

    rank: int = Field(default=8, ge=1)
    """r: singular directions; no more than the smaller side of the matrix."""
    early: float = Field(default=0.1, gt=0, lt=1)
    """The share of the steps after which the subspace is called early."""
    found: float = Field(default=0.9, gt=0, le=1)
    """The overlap from which on the final subspace counts as found."""


class Result(Frozen):
    """Overlaps and shares lie in [0, 1]; None where nothing moved."""

    n_rows: int
    rows: int
    columns: int
    rank: int
    """Used."""
    concentration: float | None
    """Share of the final update's squared norm in r singular directions."""
    concentration_null: float
    """The same of a matrix of independent Gaussian entries, simulated."""
    effective_rank: float | None
    """exp of the entropy of the final update's squared singular values."""
    early_overlap: float | None
    """Overlap of the early subspace with the final one."""
    overlap_null: float
    """Of unrelated subspaces of their dimensions: r / m where neither update has a lower rank."""
    step_found: int | None
    """The first row from which on the overlap stays above `found`."""
    early_cosine: float | None
    """Cosine between the early and the final update as vectors."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Positions that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Subspaces of all cumulative updates.

    Raises:
        MethodError: for fewer than two rows.

    Cost: a singular value decomposition per row.
    """
    x, (m, n) = matrices.in_order(block), matrices.sides(inputs)
    if len(x) < 2:
        raise MethodError(f"found {len(x)} positions; a first and a later one are needed")
    rank = min(config.rank, m, n)
    updates = [(row.double() - x[0].double()).reshape(m, n) for row in x]
    bases = [matrices.left_basis(u, rank) for u in updates]
    arrays = {
        "overlap": torch.tensor([matrices.overlap(basis, bases[-1]) for basis in bases]).double(),
        "concentration": torch.stack([_concentration(u, rank) for u in updates]),
        "norm": torch.stack([torch.linalg.vector_norm(u) for u in updates]),
        "cosine": torch.stack([_cosine(u, updates[-1]) for u in updates]),
        "step": steps.in_order(block),
    }
    return _result(arrays, updates[-1], [len(basis) for basis in bases], rank, (m, n), inputs, config), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _concentration(matrix: Tensor, rank: int) -> Tensor:
    """NaN for a matrix of zeros."""
    squares: Tensor = torch.linalg.svdvals(matrix).square()
    return squares[:rank].sum() / squares.sum()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return (a * b).sum() / norms


def _result(
    arrays: dict[str, Tensor],
    final: Tensor,
    sizes: list[int],
    rank: int,
    shape: tuple[int, int],
    inputs: Inputs,
    config: Config,
) -> Result:
    moved = bool(final.any())
    early = max(1, round(config.early * (len(arrays["norm"]) - 1)))
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Result(
        n_rows=len(arrays["norm"]),
        rows=shape[0],
        columns=shape[1],
        rank=rank,
        concentration=float(arrays["concentration"][-1]) if moved else None,
        concentration_null=float(_concentration(noise, rank)),
        effective_rank=_effective_rank(final) if moved else None,
        early_overlap=float(arrays["overlap"][early]) if moved else None,
        overlap_null=matrices.chance(sizes[early], sizes[-1], shape[0])[0],
        step_found=_found(arrays["overlap"], config.found) if moved else None,
        early_cosine=float(arrays["cosine"][early]) if moved and bool(arrays["norm"][early] > 0) else None,
        caveats=matrices.caveats(inputs)
        + (() if moved else ("the last row equals the first: nothing moved",)),
    )


def _effective_rank(matrix: Tensor) -> float:
    squares = torch.linalg.svdvals(matrix).square()
    share = squares / squares.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


def _found(overlap: Tensor, least: float) -> int | None:
    below = torch.nonzero(overlap < least)[:, 0]
    first = int(below[-1]) + 1 if len(below) else 0
    return first if first < len(overlap) else None

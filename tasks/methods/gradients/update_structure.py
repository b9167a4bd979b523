"""The structure of updates: how many entries they change, of what rank they are, and whether different updates change the same ones.

Rows are updates of one matrix: of several runs, or of the steps of one. Overlaps of the changed entries come beside what chance gives for
updates of that sparsity, ranks beside those of the same entries in shuffled places, which keep sparsity and sizes and lose all structure.
"""

from collections.abc import Iterable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices, steps
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "sparsity": ("row",), "rank": ("row",), "rank_null": ("row",), "effective_rank": ("row",), "effective_rank_null": ("row",),
    "overlap": ("row", "other"), "null": ("row", "other"), "step": ("row",),
}  # fmt: skip
REFERENCE = (
    "Mukherjee et al.: Reinforcement Learning Finetunes Small Subnetworks in Large Language Models (2025): sparsity of updates at a "
    "tolerance, their rank, one-sided overlap of subnetworks with the overlap that chance gives"
)
SEEDS = (255,)
MAX_ROWS = 512
RANKS = ("rank", "rank_null", "effective_rank", "effective_rank_null")


class Config(Frozen):
    """What counts as changed."""

    tolerance: float = Field(default=1e-5, ge=0)
    """Entries of at most this magnitude count as unchanged; 0 takes exact zeros only. The paper takes 1e-5."""
    rank_tolerance: float | None = Field(default=None, ge=0)
    """Singular values of at most this times the largest count as zero; None: the larger side times the spacing of the stored float32."""
    seed: int = 0
    """Of the shuffled places."""


class Result(Frozen):
    """Shares lie in [0, 1]; means are over rows that change anything."""

    n_rows: int
    rows: int
    columns: int
    sparsity: float
    """Mean share of entries that an update leaves as they are."""
    sparsity_low: float
    sparsity_high: float
    """The least and the most."""
    rank: float | None
    """Mean numerical rank."""
    rank_null: float | None
    """The same of updates with shuffled entries."""
    rank_share: float | None
    """The same over the smaller side: 1 for updates of full rank."""
    effective_rank: float | None
    """Mean exp of the entropy of squared singular values."""
    effective_rank_null: float | None
    """The same of updates with shuffled entries."""
    overlap: float | None
    """Mean share of an update's changed entries that another one changes too; None for a single update."""
    overlap_null: float | None
    """The same by chance: the share of entries that the other changes."""
    jaccard: float | None
    """Mean of changed by both over changed by either."""
    unchanged_rows: int
    """Updates that change nothing."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Updates that are compared at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Sparsity, rank and overlaps.

    Raises:
        MethodError: for no rows at all.

    Cost: two singular value decompositions per row, and row^2 entries.
    """
    x, (m, n) = matrices.in_order(block), matrices.sides(inputs)
    if len(x) == 0:
        raise MethodError("found no updates; at least one is needed")
    changed = x.abs() > config.tolerance
    both = torch.stack([(changed & one).sum(1).double() for one in changed])
    counts = both.diagonal().clone()
    shuffled = [_shuffled(row, config.seed, step) for step, row in enumerate(x)]
    ranks, chance = (_all_ranks(rows, (m, n), config) for rows in (x, shuffled))
    share = counts / x.shape[1]
    null = share.expand(len(x), len(x)).clone()
    arrays = {
        "sparsity": 1 - share,
        "rank": ranks[:, 0],
        "rank_null": chance[:, 0],
        "effective_rank": ranks[:, 1],
        "effective_rank_null": chance[:, 1],
        "overlap": both / counts[:, None],
        "null": null,
        "step": steps.in_order(block),
    }
    return _result(arrays, both, counts, (m, n), inputs), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _shuffled(row: Tensor, seed: int, step: int) -> Tensor:
    """The entries in an order that seed and step alone decide."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step))))
    return row[torch.from_numpy(generator.permutation(len(row))).to(row.device)]


def _all_ranks(rows: Iterable[Tensor], shape: tuple[int, int], config: Config) -> Tensor:
    """[row, 2]: numerical and effective."""
    limit = config.rank_tolerance
    if limit is None:
        limit = max(shape) * torch.finfo(torch.float32).eps
    return torch.tensor([_ranks(row.reshape(shape), limit) for row in rows], dtype=torch.float64)


def _ranks(matrix: Tensor, limit: float) -> tuple[float, float]:
    """Numerical and effective rank."""
    values = torch.linalg.svdvals(matrix.double())
    total = values.square().sum()
    if float(total) == 0:
        return 0.0, 0.0
    share = values.square() / total
    return float((values > limit * values[0]).sum()), float(
        torch.exp(-torch.special.xlogy(share, share).sum())
    )


def _result(
    arrays: dict[str, Tensor], both: Tensor, counts: Tensor, shape: tuple[int, int], inputs: Inputs
) -> Result:
    kept = torch.nonzero(counts > 0)[:, 0]
    means = {name: float(arrays[name][kept].mean()) if len(kept) else None for name in RANKS}
    jaccard = both / (counts[:, None] + counts - both)
    return Result(
        n_rows=len(counts),
        rows=shape[0],
        columns=shape[1],
        sparsity=float(arrays["sparsity"].mean()),
        sparsity_low=float(arrays["sparsity"].min()),
        sparsity_high=float(arrays["sparsity"].max()),
        rank_share=None if means["rank"] is None else means["rank"] / min(shape),
        **means,
        overlap=matrices.mean_of_pairs(arrays["overlap"], kept),
        overlap_null=matrices.mean_of_pairs(arrays["null"], kept),
        jaccard=matrices.mean_of_pairs(jaccard, kept),
        unchanged_rows=len(counts) - len(kept),
        caveats=matrices.caveats(inputs),
    )

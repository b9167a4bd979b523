"""Which singular directions of a weight are protected when it is trained on, and how much of an update lies outside of them.

Rows are weights of one matrix in order. The leading directions of the first row are protected, more of them the more important the
layer is; the change to every later row is split into what touches them and what does not.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"singular_value": ("order",), "free_share": ("row",)}
REFERENCE = (
    "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning (2025): protected rank from a layer's "
    "importance, updates kept orthogonal to protected directions on both sides; ratio = least + importance (most - least), "
    "reconstructed from the abstract"
)
SEEDS = (233,)
MAX_ROWS = 4096


class Config(Frozen):
    """How many directions are protected."""

    importance: float = Field(default=0.5, ge=0, le=1)
    """Of the layer, scaled to [0, 1]; see `gradients.layer_importance`."""
    least: float = Field(default=0.1, ge=0, le=1)
    """Share of the directions that an unimportant layer protects."""
    most: float = Field(default=0.8, ge=0, le=1)
    """Share that the most important one protects."""


class Result(Frozen):
    """Shares lie in [0, 1]; None where nothing changed."""

    n_rows: int
    rows: int
    columns: int
    protected: int
    """Leading singular directions that are protected."""
    protected_energy: float | None
    """Share of the first weight's squared norm in them."""
    free_share: float | None
    """Share of the last change's squared norm that touches no protected direction on either side."""
    free_null: float
    """The same of a random change, (1 - k / rows)(1 - k / columns)."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Weights that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Directions of the first weight, and the changes to the others.

    Raises:
        MethodError: for no rows, or a least share above the most.

    Cost: one singular value decomposition, and two products for each row.
    """
    if config.least > config.most:
        raise MethodError(f"least {config.least} is above most {config.most}; exchange them")
    x, (m, n) = matrices.in_order(block), matrices.sides(inputs)
    if len(x) == 0:
        raise MethodError("found no weights; at least one is needed")
    first = x[0].double().reshape(m, n)
    u, s, vh = torch.linalg.svd(first, full_matrices=False)
    k = round((config.least + config.importance * (config.most - config.least)) * len(s))
    left, right = u[:, :k], vh[:k]
    free = torch.stack([_free(row.double().reshape(m, n) - first, left, right) for row in x])
    arrays = {"singular_value": s, "free_share": free}
    last = float(free[-1]) if bool(free[-1].isfinite()) else None
    total = float(s.square().sum())
    return Result(
        n_rows=len(x),
        rows=m,
        columns=n,
        protected=k,
        protected_energy=float(s[:k].square().sum()) / total if total else None,
        free_share=last,
        free_null=(1 - k / m) * (1 - k / n),
        caveats=matrices.caveats(inputs)
        + (() if last is not None else ("the last weight equals the first: nothing changed",)),
    ), {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _free(change: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """NaN for no change."""
    rest = change - left @ (left.T @ change)
    rest = rest - (rest @ right.T) @ right
    return rest.square().sum() / change.square().sum()

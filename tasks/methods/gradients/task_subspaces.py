"""Subspaces of the gradients of tasks in turn, each made orthogonal to those of the tasks before it.

Rows are gradients labelled with their task. What a new task's gradients lose when the directions of earlier tasks are taken out is
what it must give up not to disturb them.
"""

from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices
from tasks.methods.classes import class_label, rows_of_class
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "energy": ("task",),
    "energy_kept": ("task",),
    "energy_lost": ("task",),
    "overlap": ("task", "other_task"),
    "history": ("direction", "feature"),
}
REFERENCE = (
    "Continuous Subspace Optimization for Continual Learning (2025): gradient subspaces per task, orthogonal to the history of "
    "earlier ones, whose basis grows by what is new; the ranking of directions is by singular values"
)
SEEDS = (32,)
MAX_ROWS = 8192


class Config(Frozen):
    """The label of tasks, and the size of a task's subspace."""

    label: str | None = None
    """The label that names tasks; None: the first that names classes. Tasks follow the order of their names."""
    rank: int = Field(default=8, ge=1)
    """Directions of a task."""


class Result(Frozen):
    """Shares of energy lie in [0, 1]; one number per task that has rows."""

    n_rows: int
    width: int
    tasks: tuple[str, ...]
    energy: tuple[float, ...]
    """Share of a task's squared gradients in its own leading subspace."""
    energy_kept: tuple[float, ...]
    """Share in its leading subspace once the history is taken out."""
    energy_lost: tuple[float, ...]
    """Share inside the history of earlier tasks: what it cannot use."""
    lost_null: tuple[float, ...]
    """The same of random gradients: size of the history / width."""
    overlap: float | None
    """Mean overlap (1 / r) |U' V|^2 of the subspaces of two tasks, before anything is taken out; None for a single task."""
    overlap_null: float
    """Of unrelated subspaces of their dimensions: r / width where each task has r."""
    history: int
    """Directions that all tasks use together."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Rows that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Subspaces of tasks one after the other.

    Raises:
        MethodError: if no label names tasks, or there are no rows.

    Cost: row^2 feature, and rank rows of a feature for each task.
    """
    label = class_label(inputs, config.label)
    names = inputs.categories[label]
    groups = [(name, rows_of_class(block, label, code)) for code, name in enumerate(names)]
    groups = [(name, rows) for name, rows in groups if len(rows) and bool(rows.any())]
    if not groups:
        raise MethodError(f"found no gradients with a class of label {label!r}")
    floors = [_rounding(rows) for _, rows in groups]
    own = [_leading(rows, config.rank, floor) for (_, rows), floor in zip(groups, floors, strict=True)]
    history, numbers = own[0][:0], []
    for (_, rows), basis, floor in zip(groups, own, floors, strict=True):
        rest = rows.double() - (rows.double() @ history.T) @ history
        total = float(rows.double().square().sum())
        new = _leading(rest, config.rank, floor)
        shares = [
            _inside(rows, basis, total),
            _inside(rest, new, total),
            _inside(rows, history, total),
            len(history) / rows.shape[1],
        ]
        numbers.append(shares)
        history = _extended(history, new)
    table = torch.tensor(numbers, dtype=torch.float64)
    overlap = torch.tensor([[matrices.overlap(a, b) for b in own] for a in own]).double()
    arrays = {
        "energy": table[:, 0],
        "energy_kept": table[:, 1],
        "energy_lost": table[:, 2],
        "overlap": overlap,
        "history": history,
    }
    sizes = [len(basis) for basis in own]
    return _result(block, [name for name, _ in groups], table, overlap, len(history), sizes, config), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _rounding(rows: Tensor) -> float:
    """The squared singular value below which a task's rows hold nothing but the rounding of their dtype."""
    return 16 * torch.finfo(rows.dtype).eps ** 2 * float(rows.double().square().sum())


def _leading(rows: Tensor, rank: int, floor: float) -> Tensor:
    found = gram.components(rows, center=False)
    return gram.directions(rows, found, min(rank, int((found.variances > floor).sum())), center=False)


def _inside(rows: Tensor, basis: Tensor, total: float) -> float:
    return min(1.0, float((rows.double() @ basis.T).square().sum()) / total)


def _extended(history: Tensor, new: Tensor) -> Tensor:
    """The history and what is new, orthonormal to rounding."""
    for _ in range(2):
        new = new - (new @ history.T) @ history
        new = torch.linalg.qr(new.T).Q.T
    return torch.cat([history, new])[: history.shape[1]]


def _result(
    block: Block,
    names: list[str],
    table: Tensor,
    overlap: Tensor,
    history: int,
    sizes: list[int],
    config: Config,
) -> Result:
    width, n = block["x"].shape[1], len(names)
    off = overlap[~torch.eye(n, dtype=torch.bool)]
    pairs = list(combinations(sizes, 2)) or [(sizes[0], sizes[0])]
    few = [name for name, size in zip(names, sizes, strict=True) if size < min(config.rank, width)]
    return Result(
        n_rows=len(block),
        width=width,
        tasks=tuple(names),
        energy=tuple(table[:, 0].tolist()),
        energy_kept=tuple(table[:, 1].tolist()),
        energy_lost=tuple(table[:, 2].tolist()),
        lost_null=tuple(table[:, 3].tolist()),
        overlap=float(off.mean()) if n > 1 else None,
        overlap_null=sum(matrices.chance(a, b, width)[0] for a, b in pairs) / len(pairs),
        history=history,
        caveats=(f"fewer directions than the {config.rank} asked for: {', '.join(few[:5])}",) if few else (),
    )

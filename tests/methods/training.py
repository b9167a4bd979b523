"""Rows that are matrices, for tests of methods about weights, updates and gradients."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tasks.methods.contract import Block, Inputs
from tasks.numerics.random_subspace import Kind, Subspace, random_subspaces
from tests.methods import cases
from tests.methods.cases import Answer, Case


def solved(module: ModuleType, x: Tensor, shape: tuple[int, ...] | None = None, **options: Any) -> Answer:
    """A `whole` method over rows."""
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x),
        shapes={} if shape is None else {"x": shape},
    )
    block = cases._block({"x": x}, len(x), False)
    return cases.run(Case(module, module.Config(**options), inputs, block))


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Seeded, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(steps: int, m: int, n: int, rank: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients [step, m * n] in one subspace of rows, with noise, and the subspace [m, rank]."""
    basis = torch.linalg.qr(randn(m, rank, seed=seed)).Q
    rows = basis @ randn(steps, rank, n, seed=seed + 1) + noise * randn(steps, m, n, seed=seed + 2)
    return rows.flatten(1), basis


def subspace(kind: Kind, entries: int, coordinates: int, seed: int = 0) -> Subspace:
    """The first draw of a seed, in float64."""
    like = torch.empty(0, dtype=torch.float64)
    (only,) = random_subspaces(kind, entries, coordinates, seed, 1, like)
    return only


def labelled(module: ModuleType, groups: dict[str, Tensor], **options: Any) -> Answer:
    """A method over rows whose label `task` names their group, mixed up."""
    x = torch.cat(list(groups.values()))
    names = tuple(sorted(groups))
    code = torch.tensor([names.index(name) for name, rows in groups.items() for _ in rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), categories={"task": names})
    index = torch.arange(len(x))
    block = Block({"x": x[order]}, index, torch.zeros_like(index), index, {"task": code[order]})
    return cases.run(Case(module, module.Config(**options), inputs, block))

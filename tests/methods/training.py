"""Rows that are matrices, for tests of methods about weights, updates and gradients."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tasks.methods.contract import Inputs
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

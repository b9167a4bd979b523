"""A method over rows in memory, called as the engine calls it."""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.methods.contract import Block, Inputs


class Answer(NamedTuple):
    """What a method gave."""

    result: Any
    arrays: dict[str, Tensor]


def answer(
    module: ModuleType,
    x: Tensor,
    sample: Tensor | None = None,
    pieces: int = 8,
    aligned: dict[str, dict[str, Tensor]] | None = None,
    results: dict[str, Any] | None = None,
    **options: Any,
) -> Answer:
    """A `reduce` or `whole` method, rows in so many blocks."""
    index, aligned = torch.arange(len(x)), aligned or {}
    sample = index if sample is None else sample
    config = module.Config.model_validate(options)
    inputs = Inputs({"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1, results=results or {})
    parts = index.tensor_split(pieces if module.KIND == "reduce" else 1)
    blocks = [
        Block(
            {"x": x[p]}, sample[p], torch.zeros_like(p), p,
            aligned={port: {name: values[p] for name, values in given.items()} for port, given in aligned.items()},
        )
        for p in parts
    ]  # fmt: skip
    if module.KIND == "whole":
        return _answer(*module.solve(blocks[0], inputs, config))
    carry = module.start(inputs, config)
    while True:
        state = module.partial(blocks[0], carry, config)
        for block in blocks[1:]:
            state = module.merge(state, module.partial(block, carry, config))
        following = module.update(state, carry, inputs, config) if hasattr(module, "update") else None
        if following is None:
            return _answer(*module.finish(state, carry, inputs, config))
        carry = following


def _answer(result: Any, arrays: Any) -> Answer:
    return Answer(result, {name: array.values for name, array in arrays.items()})


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded, float64."""
    return np.random.default_rng(seed).standard_normal(shape)


def turned(values: np.ndarray, rows: int, seed: int = 0) -> np.ndarray:
    """Gaussian rows with these standard deviations along random orthogonal directions."""
    turn = np.linalg.qr(normal(len(values), len(values), seed=seed + 1000))[0]
    return normal(rows, len(values), seed=seed) * values @ turn


def top(x: np.ndarray, k: int, centre: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """LAPACK's singular values and right singular vectors of float64 rows, k of them."""
    exact = x.astype(np.float64)
    exact = exact - exact.mean(0) if centre else exact
    _, singular, basis = np.linalg.svd(np.linalg.qr(exact, mode="r") if len(x) > x.shape[1] else exact)
    return singular[:k], basis[:k]


def sine(basis: Any, truth: np.ndarray) -> float:
    """Of the largest angle between two subspaces with orthonormal rows, from the residual; 1 where a basis is not one."""
    rows = np.linalg.qr(
        np.nan_to_num(basis.numpy() if isinstance(basis, Tensor) else basis).astype(np.float64).T
    )[0].T
    return float(min(1.0, np.linalg.norm(rows - rows @ truth.T @ truth, 2)))

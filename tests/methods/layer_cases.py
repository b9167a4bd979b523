"""Layers for the tests of methods that store them in fewer numbers: rows that correlate, and the method as the engine calls it."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tasks.methods.contract import Array, Block, Inputs

NAME = "{module}.weight"


def compressed(method: ModuleType, x: Tensor, weight: Tensor, **options: Any) -> tuple[Any, dict[str, Array]]:
    """Result and arrays, of rows in three blocks."""
    config = method.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), weights={NAME: weight})
    method.check(inputs, config)
    carry, state = method.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = method.partial(Block({"x": x[part]}, part, part, part), carry, config)
        state = other if state is None else method.merge(state, other)
    found: tuple[Any, dict[str, Array]] = method.finish(state, carry, inputs, config)
    return found


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Independent normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, width: int) -> Tensor:
    """Rows near a third of the directions, about a mean."""
    return drawn(n, width // 3) @ drawn(width // 3, width, seed=1) + 0.3 * drawn(n, width, seed=2) + 0.5

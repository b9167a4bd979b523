"""Detectors run by hand, without a store: a reduction over some rows, and scores of others by what it gave."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tasks.methods.contract import Block, Inputs


class Fitted:
    """The artifact of a reduction over rows."""

    def __init__(
        self,
        module: ModuleType,
        x: np.ndarray | torch.Tensor,
        code: np.ndarray | None = None,
        parts: int = 3,
        weights: Mapping[str, torch.Tensor] | None = None,
        **options: Any,
    ) -> None:
        config = module.Config.model_validate(options)
        labels = {} if code is None else {"class": torch.from_numpy(code)}
        categories = {} if code is None else {"class": tuple("abcdefghij")}
        inputs = Inputs({"x": x.shape[1]}, len(x), len(x), categories=categories, weights=weights or {})
        if hasattr(module, "check"):
            module.check(inputs, config)
        carry, state = module.start(inputs, config), None
        while True:
            state = None
            for some in torch.arange(len(x)).tensor_split(parts):
                block = Block(
                    {"x": torch.as_tensor(x)[some]},
                    some,
                    some * 0,
                    some,
                    {k: v[some] for k, v in labels.items()},
                )
                other = module.partial(block, carry, config)
                state = other if state is None else module.merge(state, other)
            again = module.update(state, carry, inputs, config) if hasattr(module, "update") else None
            if again is None:
                break
            carry = again
        result, arrays = module.finish(state, carry, inputs, config)
        self.result = result.model_dump(mode="json")
        self.arrays = {name: array.values for name, array in arrays.items()}
        self.width = x.shape[1]


def scores(
    module: ModuleType,
    port: str,
    fitted: Fitted,
    x: np.ndarray | torch.Tensor,
    parts: int = 1,
    weights: Mapping[str, torch.Tensor] | None = None,
    **options: Any,
) -> np.ndarray:
    """float64 [row]: of rows, an array or a tensor, in so many blocks; the summary must be theirs."""
    config = module.Config.model_validate(options)
    given = {"artifacts": {port: fitted.arrays}, "results": {port: fitted.result}, "weights": weights or {}}
    inputs = Inputs({"x": fitted.width}, len(x), len(x), **given)
    if hasattr(module, "check"):
        module.check(inputs, config)
    carry = module.start(inputs, config)
    found = []
    for some in torch.arange(len(x)).tensor_split(parts):
        found.append(
            module.apply(Block({"x": torch.as_tensor(x)[some]}, some, some * 0, some), carry, config)["score"]
        )
    score = torch.cat(found)
    state = module.partial(
        Block({"x": torch.as_tensor(x)}, some, some, some), {"score": score}, carry, config
    )
    result, _ = module.finish(state, carry, inputs, config)
    assert result.n_rows == len(x)
    assert result.mean == pytest.approx(float(score.mean()), rel=1e-9)
    return score.numpy()

"""Methods of two joined sites, run as the engine calls them."""

from types import ModuleType
from typing import Any

import numpy as np
import torch

from tasks.methods.contract import Inputs
from tests.methods import cases
from tests.methods.cases import Case


def run(
    method: ModuleType,
    x: np.ndarray,
    y: np.ndarray,
    per_sample: int = 1,
    **options: Any,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Of rows in samples of equal length, in three blocks."""
    n = len(x)
    inputs = Inputs(widths={"x": x.shape[1], "y": y.shape[1]}, n_rows=n, n_samples=-(-n // per_sample))
    block = cases._block({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, n, False)
    block = block.__class__(block.rows, block.index // per_sample, block.index % per_sample, block.index)
    here = Case(method, method.Config(**options), inputs, block)
    if hasattr(method, "check"):
        method.check(inputs, here.config)
    whole = method.KIND == "whole"
    answer = cases.run(here, None if whole else cases.cut(block, [n // 3, 2 * n // 3]))
    return answer.result, {name: values.numpy() for name, values in answer.arrays.items()}

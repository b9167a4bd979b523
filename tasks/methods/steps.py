"""Which steps of a training rows are, where their samples say so: recordings and checkpoints do."""

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.methods.contract import Block

LABEL = "step"


def of_rows(block: Block) -> Float64[Tensor, " row"]:
    """The number that label `step` gives each row of a block, NaN without such numbers."""
    found = block.labels.get(LABEL)
    if found is None or not found.is_floating_point():
        return torch.full((len(block),), torch.nan, dtype=torch.float64, device=block.index.device)
    return found.double()


def in_order(block: Block) -> Float64[Tensor, " row"]:
    """The same in the order of the capture."""
    return of_rows(block)[torch.argsort(block.index)]

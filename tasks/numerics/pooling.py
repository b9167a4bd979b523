"""One number for each group of consecutive rows."""

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor


def pooled(
    values: Float64[Tensor, " row"], first: Bool[Tensor, " row"], share: float
) -> Float64[Tensor, " group"]:
    """The mean of the highest values of each group.

    Args:
        values: no NaN.
        first: where a group begins; the first row must.
        share: of a group's rows, rounded up to whole ones and to one at least, that count: 1 for the mean of all, 0 for the largest.

    Returns:
        In the order of the groups.

    Cost: O(row log row), on the CPU, where sums have one order.
    """
    device = values.device
    values, first = values.cpu(), first.cpu()
    starts = torch.nonzero(first)[:, 0]
    if not len(starts):
        return values.new_zeros(0).to(device)
    group = first.cumsum(0) - 1
    order = torch.from_numpy(np.lexsort((-values.numpy(), group.numpy())))
    sizes = torch.bincount(group, minlength=len(starts))
    kept = torch.ceil(sizes.double() * share * (1 - 1e-12)).long().clamp_min(1)
    rank = torch.arange(len(values)) - starts[group]
    counts = rank < kept[group]
    sums = torch.zeros_like(kept, dtype=torch.float64)
    sums.index_add_(0, group[counts], values[order][counts])
    return (sums / kept).to(device)

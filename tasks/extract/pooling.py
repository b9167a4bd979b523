"""How what a network gives for each token becomes one embedding of the sample."""

import torch
from torch import Tensor

from schemas.errors import ModelError
from schemas.loss import ProjectionLoss, SimilarityLoss
from tasks.extract.batches import Batch


def pooled(value: Tensor, batch: Batch, loss: SimilarityLoss | ProjectionLoss) -> Tensor:
    """One row for each sample.

    Args:
        value: [sample, token, feature], or [sample, feature], which is taken as it is.
        batch: that it belongs to.
        loss: whose `pooling` is wanted.

    Returns:
        [sample, feature].

    Raises:
        ModelError: if the value has other axes.
    """
    if value.ndim == 2:
        return value
    if value.ndim != 3:
        raise ModelError(
            f"the loss {loss.kind!r} takes rows [sample, token, feature] or [sample, feature], found {tuple(value.shape)}"
        )
    if batch.mask is None:
        return value.mean(1) if loss.pooling == "mean" else value[:, 0]
    mask = batch.mask.to(value.device)
    if loss.pooling == "cls":
        return value[torch.arange(len(value), device=value.device), mask.int().argmax(1)]
    kept = mask[:, :, None].to(value.dtype)
    return (value * kept).sum(1) / kept.sum(1).clamp(min=1)

"""Random vectors that outputs are multiplied by, one for each sample."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import ModelError
from schemas.loss import ProjectionLoss
from tasks.extract.batches import Batch
from tasks.extract.pooling import pooled
from tasks.extract.targets import SAMPLE


def embedding(value: Tensor, batch: Batch, loss: ProjectionLoss) -> Tensor:
    """[sample, feature]: what is multiplied.

    Raises:
        ModelError: if the value has one axis, or more than three.
    """
    rows = pooled(value, batch, loss)
    return F.normalize(rows, dim=1) if loss.unit_length else rows


def projected(value: Tensor, batch: Batch, loss: ProjectionLoss) -> Tensor:
    """[sample]: each embedding times the vector of its sample, of independent standard normal numbers.

    Args:
        value: what the network gave, [sample, feature] or [sample, token, feature].
        batch: that it belongs to.
        loss: its options.

    Raises:
        ModelError: if the value has other axes, or the batch does not say which samples it holds.
    """
    if batch.targets is None or SAMPLE not in batch.targets:
        raise ModelError("the loss 'projection' needs batches that say which samples they hold")
    rows = embedding(value, batch, loss)
    vectors = [_vector(loss.seed, sample, rows.shape[1]) for sample in batch.targets[SAMPLE].tolist()]
    return (rows * torch.from_numpy(np.stack(vectors)).to(rows)).sum(1)


def _vector(seed: int, sample: int, width: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, sample])).standard_normal(width)

"""What sentences are compared with: one direction per class, given or drawn."""

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.base import sha256
from schemas.errors import ModelError, SpecError
from schemas.loss import SimilarityLoss
from tasks.extract.batches import Batch
from tasks.extract.pooling import pooled


class Prototypes:
    """Directions of the classes of a `similarity` loss."""

    def __init__(self, loss: SimilarityLoss, n_classes: int) -> None:
        """Take them from the loss's file, or draw them.

        Args:
            loss: with its options.
            n_classes: classes of the data.
        """
        self._loss = loss
        self._n_classes = n_classes

    def cosines(self, value: Tensor, batch: Batch) -> Tensor:
        """Of each sample's embedding with each class.

        Args:
            value: [sample, token, feature], pooled here, or [sample, feature].
            batch: that it belongs to.

        Returns:
            [sample, class].

        Raises:
            ModelError: if the value has other axes, or prototypes another width.
            SpecError: if the file of prototypes cannot be used.
        """
        rows = F.normalize(pooled(value, batch, self._loss), dim=1)
        return rows @ self._directions(rows.shape[1]).to(rows).T

    @cached_property
    def digest(self) -> str:
        """sha256 of the given directions; empty where they are drawn."""
        return "" if self._given is None else sha256(self._given.numpy().tobytes())

    def _directions(self, width: int) -> Tensor:
        """float64 [class, feature], of length 1."""
        given = self._given
        if given is None:
            given = _random_directions(self._n_classes, width, self._loss.seed)
        if given.ndim != 2 or given.shape[1] != width or len(given) < self._n_classes:
            raise ModelError(
                f"the loss 'similarity' has prototypes of shape {tuple(given.shape)}; expected ({self._n_classes}, {width}): one row per "
                "class, as wide as the network's embedding"
            )
        return F.normalize(given, dim=1)

    @cached_property
    def _given(self) -> Tensor | None:
        path = self._loss.prototypes
        if path is None:
            return None
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SpecError(
                f"loss: the prototypes {path!r} cannot be read: {error}; expected an .npy file of one row per class"
            ) from error
        return _checked(found, path)


def _checked(found: Any, path: str) -> Tensor:
    """float64 [class, feature]."""
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise SpecError(
            f"loss: the prototypes {path!r} are {kind}; expected an .npy file of real numbers, one row per class"
        )
    values = torch.from_numpy(found.astype(np.float64))
    rows = values.flatten(1) if values.ndim > 1 else values[None]
    bad = (rows.norm(dim=1) == 0) | ~rows.isfinite().all(1)
    if bool(bad.any()):
        raise SpecError(
            f"loss: row {int(bad.nonzero()[0])} (from 0) of the prototypes {path!r} is zero or not finite and has no direction"
        )
    return values


@lru_cache(maxsize=4)
def _random_directions(n: int, width: int, seed: int) -> Tensor:
    """float64 [n, width]: seeded, row by row, so that more of them change none."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, k])).standard_normal(width) for k in range(n)]
    return torch.from_numpy(np.stack(rows))

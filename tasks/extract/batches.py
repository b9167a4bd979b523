"""Batches: what one holds, and how samples are packed into them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Batch(NamedTuple):
    """One padded batch of `b` samples, `t` positions wide where it is text.

    inputs: keyword inputs of the module; the key "" stands for the one positional input.
    mask: bool [b, t], True at real tokens; None where samples have no token axis.
    keep: bool [b, t], the rows to keep, before pooling; None means every row.
    token_id: integer [b, t], the ids, or None.
    position: integer [b, t], the place of each token in its sample, or None.
    targets: label name to classes (int64) or numbers (float64) [b] that the loss takes, and `labels` [b, t] where samples bring them.
    """

    inputs: dict[str, Tensor]
    mask: Tensor | None = None
    keep: Tensor | None = None
    token_id: Tensor | None = None
    position: Tensor | None = None
    targets: dict[str, Tensor] | None = None

    @property
    def n_samples(self) -> int:
        """Samples of the batch."""
        counted = self.mask if self.mask is not None else next(iter(self.inputs.values()))
        return int(counted.shape[0])

    def take(self, rows: Tensor) -> "Batch":
        """Some of its samples, as padded as they are.

        Args:
            rows: int64 [chosen].
        """

        def chosen(value: Tensor) -> Tensor:
            return value[rows.to(value.device)]

        def each(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: chosen(value) for name, value in values.items()}

        mask, keep, token_id, position = (
            None if value is None else chosen(value)
            for value in (self.mask, self.keep, self.token_id, self.position)
        )
        targets = None if self.targets is None else each(self.targets)
        return Batch(each(self.inputs), mask, keep, token_id, position, targets)


def pack(lengths: Sequence[int], budget_tokens: int, max_samples: int, overhead: int = 64) -> list[list[int]]:
    """Groups of indices into `lengths` that cost the least, each within the budget of padded tokens.

    Samples are sorted longest first, equal lengths in their given order, and cut into the runs that minimise padded
    tokens plus `overhead` per batch: an exact dynamic programme over the cuts. Batches depend on nothing but the
    arguments. A sample longer than the budget gets a batch of its own.

    Args:
        lengths: tokens of each sample.
        budget_tokens: most padded tokens of a batch.
        max_samples: most samples of a batch.
        overhead: what a batch costs beside its tokens, in tokens.

    Cost: a sort, and n steps over at most `max_samples` places.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    longest = np.maximum(1, np.asarray(lengths, dtype=np.int64)[order])
    n = len(order)
    least = np.zeros(n + 1, dtype=np.int64)
    begin = np.zeros(n + 1, dtype=np.int64)
    for stop in range(1, n + 1):
        first = np.arange(max(0, stop - max_samples), stop)
        padded = (stop - first) * longest[first]
        fits = (padded <= budget_tokens) | (first == stop - 1)
        cost = np.where(fits, least[first] + padded + overhead, np.iinfo(np.int64).max)
        best = int(cost.argmin())
        least[stop], begin[stop] = cost[best], first[best]
    return [order[low:high].tolist() for low, high in _runs(begin)]


def _runs(begin: np.ndarray) -> list[tuple[int, int]]:
    """The chosen runs in order, from where the best run that ends at each place begins."""
    runs: list[tuple[int, int]] = []
    stop = len(begin) - 1
    while stop > 0:
        runs.append((int(begin[stop]), stop))
        stop = int(begin[stop])
    return runs[::-1]

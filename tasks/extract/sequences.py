"""Token sequences: padded into batches, with the rows that are kept and the place of each."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.capture import PaddingSide, Rows
from tasks.extract.batches import Batch
from tasks.extract.ragged import Ragged


class Sequences(NamedTuple):
    """Samples that are token sequences, end to end.

    columns: keyword input to integer rows; all columns have the same row lengths, and there is at least one.
    pads: keyword input to the value at padding; 0 where none is given.
    truncated: bool [n], which samples were cut.
    real: bool [total], False at places that the sample's own attention mask hides; None: all are real.
    zeros: keyword inputs that are 0 everywhere.
    special: token ids that the Rows policy may drop.
    first_position: position id of a sample's first token.
    extra: further inputs [b, ...] of the samples at some places.
    """

    columns: Mapping[str, Ragged]
    truncated: np.ndarray
    pads: Mapping[str, int] = {}
    real: np.ndarray | None = None
    zeros: tuple[str, ...] = ()
    special: np.ndarray = np.zeros(0, dtype=np.int64)
    first_position: int = 0
    extra: Callable[[Sequence[int]], dict[str, Tensor]] | None = None


class SequenceEncoder:
    """Encodes token sequences. Indices are places among the samples it was made of."""

    is_text = True

    def __init__(self, sequences: Sequences, rows: Rows, padding_side: PaddingSide = "right") -> None:
        self._sequences = sequences
        self._rows = rows
        self._side = padding_side
        self._layout = next(iter(sequences.columns.values()))
        total = len(self._layout.values)
        self._real = np.ones(total, dtype=bool) if sequences.real is None else sequences.real

    def __len__(self) -> int:
        return len(self._layout)

    def lengths(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """int64 [n]: tokens after truncation, special ones included."""
        return _at(self._layout.lengths, places)

    def truncated(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """bool [n]: which samples were cut."""
        return _at(self._sequences.truncated, places)

    def kept_rows(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """int64 [n]: rows that the Rows policy keeps, before pooling; 0 is possible."""
        return _at(self._layout.count(self._kept), places)

    def row_columns(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """token_id and position (int32 [kept]) of a sample's kept rows."""
        where = self._flat([place])
        where = where[self._kept[where]]
        return self._token_ids[where], self._position[where]

    def batch(self, places: Sequence[int]) -> Batch:
        """The samples padded to the longest, at least one token wide."""
        lengths = self.lengths(places)
        width = max(1, int(lengths.max(initial=0)))
        place = np.arange(width)
        slots = place < lengths[:, None] if self._side == "right" else place >= width - lengths[:, None]
        where = self._flat(places)

        def fill(values: np.ndarray, pad: int, dtype: type = np.int64) -> Tensor:
            padded: np.ndarray = np.full(slots.shape, pad, dtype=dtype)
            padded[slots] = values[where]
            return torch.from_numpy(padded)

        pads, columns = self._sequences.pads, self._sequences.columns
        inputs = {name: fill(column.values, pads.get(name, 0)) for name, column in columns.items()}
        mask = fill(self._real, 0, bool)
        position = fill(self._position, -1)
        inputs["attention_mask"] = mask.long()
        inputs |= {name: torch.zeros(slots.shape, dtype=torch.long) for name in self._sequences.zeros}
        if self._side == "left":
            inputs["position_ids"] = position.clamp(min=0) + self._sequences.first_position
        if self._sequences.extra is not None:
            inputs |= self._sequences.extra(places)
        return Batch(inputs, mask, fill(self._kept, 0, bool), fill(self._token_ids, -1), position)

    @cached_property
    def _token_ids(self) -> np.ndarray:
        """int32 [total]; -1 where samples have no input_ids."""
        ids = self._sequences.columns.get("input_ids")
        return ids.values if ids is not None else np.full(len(self._layout.values), -1, dtype=np.int32)

    @cached_property
    def _position(self) -> np.ndarray:
        """int32 [total]: the place among the real tokens of the sample, -1 where it is not real."""
        return np.where(self._real, self._layout.rank(self._real), -1).astype(np.int32)

    @cached_property
    def _kept(self) -> np.ndarray:
        """bool [total]: real, not special where those are dropped, and then by position."""
        kept = self._real
        if self._rows.special_tokens == "drop":
            kept = kept & ~np.isin(self._token_ids, self._sequences.special)
        if self._rows.positions == "all":
            return kept
        rank = self._layout.rank(kept)
        if self._rows.positions == "not-first":
            return kept & (rank > 0)
        wanted = 0 if self._rows.positions == "first" else self._last(kept)
        chosen: np.ndarray = kept & (rank == wanted)
        return chosen

    def _last(self, kept: np.ndarray) -> np.ndarray:
        last: np.ndarray = np.repeat(self._layout.count(kept) - 1, self._layout.lengths)
        return last

    def _flat(self, places: Sequence[int]) -> np.ndarray:
        """int64: flat indices of all tokens of some samples, in order."""
        offsets = self._layout.offsets
        spans = [np.arange(offsets[place], offsets[place + 1]) for place in places]
        return np.concatenate([np.zeros(0, dtype=np.int64), *spans])


def _at(values: np.ndarray, places: Sequence[int] | np.ndarray | None) -> np.ndarray:
    chosen: np.ndarray = values[slice(None) if places is None else np.asarray(places, dtype=np.int64)]
    return chosen

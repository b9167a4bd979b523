"""Rows of different lengths in one flat array: a million short texts take the bytes of their token ids."""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np


class Ragged:
    """Integer rows end to end.

    values: int32 [total].
    offsets: int64 [row + 1], where each row begins, and the end of the last.
    """

    def __init__(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self.values = values
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        """From lists, or integer arrays, of different lengths."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        values = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        return cls(values, lengths)

    @classmethod
    def join_rows(cls, rows: Sequence[np.ndarray]) -> "Ragged":
        """From int32 arrays."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        return cls(np.concatenate([np.zeros(0, np.int32), *rows]), lengths)

    @classmethod
    def join(cls, parts: Iterable["Ragged"]) -> "Ragged":
        """Rows of all parts, in order."""
        listed = list(parts)
        values = np.concatenate([np.zeros(0, np.int32), *(part.values for part in listed)])
        return cls(values, np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in listed)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [row]."""
        return np.diff(self.offsets)

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """int64 [row]: how many of a row's places are chosen, given bool [total]."""
        before = np.concatenate([[0], np.cumsum(chosen, dtype=np.int64)])
        counts: np.ndarray = before[self.offsets[1:]] - before[self.offsets[:-1]]
        return counts

    def rank(self, chosen: np.ndarray) -> np.ndarray:
        """int64 [total]: for a chosen place, how many chosen ones of its row come before it."""
        before = np.concatenate([[0], np.cumsum(chosen, dtype=np.int64)])
        ranks: np.ndarray = before[:-1] - np.repeat(before[self.offsets[:-1]], self.lengths)
        return ranks

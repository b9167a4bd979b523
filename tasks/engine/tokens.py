"""Rows labelled by tokens: their own, or the one that follows. NumPy only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tasks.engine.source import Part

NONE = -1
"""The code of a row without a token."""


def token_labels(part: "Part", names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
    """Label name -> int64 [row] token ids of rows [start, stop) of a capture, failed ones included; -1 where there is none.

    `next_token` is that of the row one position further in the same sample, wherever it lies: a shard's last row reads one row more. A row
    whose next position was not kept has none.
    """
    columns = {
        "token": lambda: part.column("token_id", start, stop),
        "next_token": lambda: _next(part, start, stop),
    }
    return {name: columns[name]() for name in names}


def _next(part: "Part", start: int, stop: int) -> np.ndarray:
    token, sample, position = (
        part.column(name, start, stop + 1) for name in ("token_id", "sample", "position")
    )
    found = np.full(stop - start, NONE, dtype=np.int64)
    follows = (sample[1:] == sample[:-1]) & (position[1:] == position[:-1] + 1)
    found[: len(follows)][follows] = token[1:][follows]
    return found

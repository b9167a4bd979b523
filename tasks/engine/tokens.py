"""Rows labelled by tokens: their own, or the one that follows. NumPy only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from schemas.errors import MethodError

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


def check_tokens(parts: Sequence["Part"]) -> None:
    """Refuse captures whose rows have no tokens, or tokens of different vocabularies.

    Raises:
        MethodError: naming the capture.
    """
    first = parts[0]
    for part in parts:
        if part.space.per_sample is not None:
            raise MethodError(
                f"{part.ref.label}: rows of space {part.space.name!r} are no tokens, so they have no `token` or `next_token`; "
                "choose a label of the samples, or a site with a row for each token"
            )
        if part.spec.tokenizer != first.spec.tokenizer:
            raise MethodError(
                f"{part.ref.label} and {first.ref.label} were captured with different tokenizers, so that their token ids mean different "
                "things; use a stage for each"
            )


def _next(part: "Part", start: int, stop: int) -> np.ndarray:
    token, sample, position = (
        part.column(name, start, stop + 1) for name in ("token_id", "sample", "position")
    )
    found = np.full(stop - start, NONE, dtype=np.int64)
    follows = (sample[1:] == sample[:-1]) & (position[1:] == position[:-1] + 1)
    found[: len(follows)][follows] = token[1:][follows]
    return found

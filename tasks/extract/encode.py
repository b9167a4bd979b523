"""Samples as inputs of a network: lengths and kept rows are known from ids alone, before any forward."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from schemas.capture import CaptureRequest
from schemas.model import Model
from tasks.extract.batches import Batch
from tasks.extract.constant import ConstantEncoder, first_readable
from tasks.extract.inputs import is_sequence, read_sequences
from tasks.extract.sequences import SequenceEncoder
from tasks.extract.sources.base import Source
from tasks.extract.targets import with_targets
from tasks.extract.tokens import tokenise

__all__ = ["Encoder", "make_encoder"]

Places = Sequence[int] | np.ndarray | None
"""Places in the indices that an encoder was made for, from 0; None: all."""


class Encoder(Protocol):
    """Encodes chosen samples of a source. Every index is a place in the indices it was made for, from 0."""

    @property
    def is_text(self) -> bool:
        """Whether samples are token sequences: padded, with a mask."""

    def __len__(self) -> int: ...

    def lengths(self, places: Places = None) -> np.ndarray:
        """int64 [n]: tokens after truncation, special ones included; 1 where there are no tokens."""

    def truncated(self, places: Places = None) -> np.ndarray:
        """bool [n]: which samples were cut to the longest length."""

    def kept_rows(self, places: Places = None) -> np.ndarray:
        """int64 [n]: rows that the Rows policy keeps, before pooling; 0 is possible."""

    def row_columns(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """token_id and position (int32) of a sample's kept rows; token_id is -1 where there are no tokens."""

    def batch(self, places: Sequence[int]) -> Batch:
        """The samples as one batch.

        Raises:
            DataError: if a sample cannot be read, or has another shape than the others.
        """


def make_encoder(
    source: Source,
    indices: Sequence[int] | np.ndarray | range,
    model: Model,
    request: CaptureRequest,
) -> Encoder:
    """An encoder of the samples of `source` that `indices` name; only these are read and tokenised.

    Args:
        source: the data.
        indices: which samples, in the order of the capture.
        model: its folder gives the tokenizer and the longest length.
        request: rows, max_length, too_long, padding_side, and the loss, whose targets batches then carry.

    Raises:
        DataError: if the samples do not fit the network, such as a text that is too long.
        SpecError: if the data lack what the loss takes.

    Cost: texts are tokenised once, 4 bytes are kept per token; tensors are read batch by batch.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    return with_targets(_encoder(source, chosen, model, request), source, chosen, request.loss)


def _encoder(source: Source, chosen: np.ndarray, model: Model, request: CaptureRequest) -> Encoder:
    if source.kind == "text":
        return SequenceEncoder(tokenise(source, chosen, model, request), request.rows, request.padding_side)
    if source.kind == "inputs" and is_sequence(first_readable(source).value):
        return SequenceEncoder(
            read_sequences(source, chosen, model, request), request.rows, request.padding_side
        )
    return ConstantEncoder(source, chosen)

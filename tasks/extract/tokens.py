"""Texts as token ids, by the network's own tokenizer."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.capture import CaptureRequest
from schemas.errors import DataError
from schemas.model import Model
from tasks.extract.limits import check_lengths, limit_of, load_tokenizer, special_ids
from tasks.extract.ragged import Ragged
from tasks.extract.sequences import Sequences
from tasks.extract.sources.base import Source
from tasks.extract.weights import tokenizer_folder

BLOCK_TEXTS = 128
"""Texts that are tokenised at once; only their ids stay."""
_ONE_AT_A_TIME = threading.Lock()
"""A tokenizer keeps the way it cuts texts as its state, which it refuses to change while another thread uses it."""


def tokenise(source: Source, indices: np.ndarray, model: Model, request: CaptureRequest) -> Sequences:
    """The chosen texts as token ids, special tokens added, those too long cut or refused.

    Args:
        source: texts.
        indices: int64 [n], which of them.
        model: its folder has the tokenizer.
        request: max_length and too_long.

    Raises:
        DataError: if the network has no tokenizer, or texts are too long and to be refused.

    Cost: one pass of the tokenizer, a second one over texts that are cut; 4 bytes per token and column.
    """
    if tokenizer_folder(model) is None:
        raise DataError(
            f"the data are texts, but the network is made by {getattr(model, 'factory', model.kind)}, which has no tokenizer; name the "
            "folder of one as `tokenizer` of the model, tokenise in a data factory, or use a transformers model"
        )
    tokenizer = load_tokenizer(model)
    limit = limit_of(model, request, tokenizer)
    _check_room(tokenizer, limit.tokens)
    parts = [_block(tokenizer, [source[int(i)].value for i in block]) for block in _blocks(indices)]
    columns = {name: Ragged.join(part[name] for part in parts) for name in parts[0]}
    over = check_lengths(
        columns["input_ids"].lengths, limit.tokens, request, lambda n: source[int(indices[n])].key, "texts"
    )
    if over.any():
        columns = _cut(tokenizer, source, indices, columns, over, limit.tokens)
    zeros = [name for name, column in columns.items() if name != "input_ids" and not column.values.any()]
    return Sequences(
        columns={name: column for name, column in columns.items() if name not in zeros},
        truncated=over,
        pads=_pads(tokenizer),
        zeros=tuple(zeros),
        special=special_ids(tokenizer),
        first_position=limit.first_position,
    )


def spans(model: Model, text: str) -> list[tuple[int, int, int]]:
    """Each token of a text, special ones too: its id, its first letter, and one past its last; none where the tokenizer does not tell.

    Raises:
        DataError: if the network has no tokenizer that loads.
    """
    tokenizer = load_tokenizer(model)
    if not tokenizer.is_fast:
        return []
    with _ONE_AT_A_TIME:
        found = tokenizer(text, truncation=False, padding=False, return_offsets_mapping=True, verbose=False)
    return [
        (int(token), *ends) for token, ends in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _blocks(indices: np.ndarray) -> list[np.ndarray]:
    return np.array_split(indices, max(1, -(-len(indices) // BLOCK_TEXTS)))


def _block(tokenizer: Any, texts: Sequence[str], limit: int | None = None) -> dict[str, Ragged]:
    """input_ids, and token_type_ids where the tokenizer gives them."""
    if not texts:
        return {"input_ids": Ragged.of([])}
    with _ONE_AT_A_TIME:
        encoded = tokenizer(
            list(texts),
            padding=False,
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            verbose=False,
        )
    wanted = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return {name: Ragged.of(encoded[name]) for name in wanted}


def _cut(
    tokenizer: Any,
    source: Source,
    indices: np.ndarray,
    columns: dict[str, Ragged],
    over: np.ndarray,
    limit: int | None,
) -> dict[str, Ragged]:
    """Columns with the too long texts tokenised again, so that closing special tokens stay."""
    where = np.flatnonzero(over)
    again = [_block(tokenizer, [source[int(i)].value for i in b], limit) for b in _blocks(indices[where])]
    short = {name: Ragged.join(part[name] for part in again) for name in columns}
    turn = {int(place): n for n, place in enumerate(where)}
    return {
        name: Ragged.join_rows([short[name][turn[n]] if n in turn else column[n] for n in range(len(column))])
        for name, column in columns.items()
    }


def _check_room(tokenizer: Any, limit: int | None) -> None:
    added = int(tokenizer.num_special_tokens_to_add())
    if limit is not None and limit <= added:
        raise DataError(
            f"max_length is {limit}, and the tokenizer adds {added} special tokens to every text; "
            f"expected at least {added + 1}"
        )


def _pads(tokenizer: Any) -> dict[str, int]:
    """What stands at padding, which the mask hides: any id will do where the tokenizer has none for it."""
    pad = tokenizer.pad_token_id
    return {
        "input_ids": 0 if pad is None else int(pad),
        "token_type_ids": int(getattr(tokenizer, "pad_token_type_id", 0)),
    }

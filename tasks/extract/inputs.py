"""Samples that are dicts of keyword inputs and hold token sequences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.capture import CaptureRequest
from schemas.errors import DataError
from schemas.model import Model
from tasks.extract.constant import ConstantEncoder, as_tensor, first_readable
from tasks.extract.limits import check_lengths, limit_of, load_tokenizer, special_ids
from tasks.extract.ragged import Ragged
from tasks.extract.sequences import Sequences
from tasks.extract.sources.base import Sample, Source
from tasks.extract.weights import tokenizer_folder

SEQUENCE_INPUTS = ("input_ids", "attention_mask")
"""A dict that holds one of these as 1-D integers is a token sequence."""


def is_sequence(value: Any) -> bool:
    """Whether a sample is a dict with a token sequence."""
    return isinstance(value, Mapping) and any(
        name in value and _is_integer_row(value[name]) for name in SEQUENCE_INPUTS
    )


def read_sequences(source: Source, indices: np.ndarray, model: Model, request: CaptureRequest) -> Sequences:
    """The chosen dicts as sequences: their 1-D integers are padded, all else is read again batch by batch.

    Raises:
        DataError: if a sample lacks an input that the first one has, or its inputs differ in length, or it is
            too long, or special tokens are to be dropped and no tokenizer tells which they are.

    Cost: one pass over the samples; 4 bytes per token and input.
    """
    form = first_readable(source).value
    names = [name for name, value in form.items() if _is_integer_row(value)]
    others = [name for name in form if name not in names]
    limit = limit_of(model, request)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index in indices:
        for name, row in _rows(source[int(index)], names).items():
            rows[name].append(row)
    lengths = np.array([len(row) for row in rows[names[0]]], dtype=np.int64)
    over = check_lengths(lengths, limit.tokens, request, lambda n: source[int(indices[n])].key, "samples")
    columns = {name: Ragged.join_rows([row[: limit.tokens] for row in rows[name]]) for name in names}
    mask = columns.pop("attention_mask", None)
    if not columns and mask is not None:
        columns["attention_mask"] = mask
    return Sequences(
        columns=columns,
        truncated=over,
        real=None if mask is None else mask.values != 0,
        special=_special(model, request),
        first_position=limit.first_position,
        extra=ConstantEncoder(source, indices, others).stack if others else None,
    )


def _rows(sample: Sample, names: list[str]) -> dict[str, np.ndarray]:
    missing = [name for name in names if name not in sample.value]
    if missing:
        raise DataError(
            f"sample {sample.key!r} has no {missing[0]!r}; it has {', '.join(sample.value)}, and the first "
            f"sample has {', '.join(names)}: give every sample the same inputs"
        )
    found = {name: as_tensor(sample.value[name], sample.key) for name in names}
    shapes = {name: tuple(row.shape) for name, row in found.items()}
    if len(set(shapes.values())) != 1 or not all(_is_integer_row(row) for row in found.values()):
        raise DataError(
            f"sample {sample.key!r} has inputs of shapes {shapes}; expected 1-D integers, all of one length"
        )
    for name, row in found.items():
        if row.numel() and (int(row.min()) < -(2**31) or int(row.max()) >= 2**31):
            raise DataError(
                f"input {name!r} of a sample holds {int(row.abs().max())}; token sequences are kept as 32-bit whole numbers"
            )
    return {name: row.numpy().astype(np.int32) for name, row in found.items()}


def _special(model: Model, request: CaptureRequest) -> np.ndarray:
    if request.rows.special_tokens == "keep":
        return np.zeros(0, dtype=np.int64)
    if tokenizer_folder(model) is not None:
        return special_ids(load_tokenizer(model))
    raise DataError(
        f"rows.special_tokens: drop was asked of samples without a tokenizer (network {getattr(model, 'factory', model.kind)}); "
        "expected keep: drop them in the data factory"
    )


def _is_integer_row(value: Any) -> bool:
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return kind.startswith(("int", "uint", "bool")) and len(value.shape) == 1

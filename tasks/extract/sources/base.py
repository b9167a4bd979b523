"""What every source of samples gives: values by index, and keys, labels and a fingerprint of the whole."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from schemas.base import Frozen, canonical_json
from schemas.errors import DataError

Kind = Literal["text", "tensor", "inputs"]
"""`text` needs a tokenizer, `tensor` is the one positional input, `inputs` is a mapping of keyword inputs."""

Label = str | int | float
LONGEST_LABEL = 128
"""Characters of a label's name, which becomes a name on disk."""


class Sample(NamedTuple):
    """One sample.

    key: its name, unique in the source.
    value: str, numpy array, torch tensor, or a dict of arrays and tensors.
    labels: label name to value.
    """

    key: str
    value: Any
    labels: dict[str, Label]


class Table(NamedTuple):
    """Keys and labels of a whole source, in data order."""

    keys: Sequence[str]
    labels: Mapping[str, Sequence[Label]]


class Source:
    """Samples in a fixed order. Made by the `read` function of one module of this folder.

    Keys and labels that cost a pass over the data are found at the first call that needs them.
    """

    def __init__(
        self,
        kind: Kind,
        length: int,
        value: Callable[[int], Any],
        table: Callable[[], Table],
        fingerprint: Callable[[], str],
        sample: Callable[[int], Sample] | None = None,
        n_skipped: int = 0,
    ) -> None:
        """Compose a source.

        Args:
            kind: what the values are.
            length: how many samples.
            value: index to value; may raise DataError for this sample alone.
            table: gives keys and labels; called at most once.
            fingerprint: sha256 of what the samples are; called at most once.
            sample: gives a whole sample where the table is dearer than one item.
            n_skipped: samples left out because they are empty.
        """
        self.kind: Kind = kind
        self.n_skipped = n_skipped
        self._length = length
        self._value = value
        self._make_table = table
        self._make_fingerprint = fingerprint
        self._sample = sample
        self._table: Table | None = None
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """One sample; indices from 0.

        Raises:
            DataError: if this sample cannot be read.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        if self._sample is not None:
            return self._sample(index)
        table = self._checked()
        labels = {name: column[index] for name, column in table.labels.items()}
        return Sample(table.keys[index], self._value(index), labels)

    def keys(self) -> list[str]:
        """Unique names, in data order.

        Raises:
            DataError: if two samples have one name.
        """
        return list(self._checked().keys)

    def labels(self) -> dict[str, list[Label]]:
        """Label name to one value per sample: all text, all whole numbers, or all floats."""
        return {name: list(column) for name, column in self._checked().labels.items()}

    @property
    def fingerprint(self) -> str:
        """sha256 over the samples in order, with keys and labels; for factories possibly a full pass."""
        if self._fingerprint is None:
            self._fingerprint = self._make_fingerprint()
        return self._fingerprint

    def _checked(self) -> Table:
        if self._table is None:
            table = self._make_table()
            check_unique(table.keys)
            self._table = Table(table.keys, {name: label_column(name, c) for name, c in table.labels.items()})
        return self._table


def check_unique(keys: Sequence[str]) -> None:
    """Refuse two samples of one name.

    Raises:
        DataError: naming the first repeated key and both places.
    """
    if len(set(keys)) == len(keys):
        return
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            raise DataError(
                f"the key {key!r} names samples {first[key]} and {index} (from 0); expected unique keys: "
                "choose another key column, or leave it out to name samples by file and row"
            )
        first[key] = index


def refuse_half_characters(text: str, where: str) -> None:
    """Refuse what no file can hold as UTF-8.

    Raises:
        DataError: if a text holds half a surrogate pair.
    """
    if not text.isascii() and any("\ud800" <= mark <= "\udfff" for mark in text):
        raise DataError(
            f"{where}: the text holds half a surrogate pair, which is no character; repair the file"
        )


def check_label_name(name: str) -> None:
    """Refuse what cannot be the name of an array on disk.

    Raises:
        DataError: if a name is empty, too long or holds a slash.
    """
    if not name or len(name) > LONGEST_LABEL or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise DataError(
            f"a label is called {name!r}; expected 1 to {LONGEST_LABEL} characters without / and \\: give it another name"
        )


def label_column(name: str, values: Sequence[Any]) -> Sequence[Label]:
    """A column of labels of one type: str, int, or float.

    Raises:
        DataError: if a value is none of these, is missing, or if text and numbers are mixed.
    """
    check_label_name(name)
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    types = {type(value) for value in plain}
    if types <= {str}:
        for row, text in enumerate(plain):
            refuse_half_characters(text, f"label {name!r}, sample {row}")
        return plain
    if types <= {int, bool}:
        return [int(value) for value in plain]
    if types <= {int, bool, float}:
        return [float(value) for value in plain]
    names = ", ".join(sorted(kind.__name__ for kind in types))
    row = next((n for n, value in enumerate(plain) if type(value) is not type(plain[0])), 0)
    raise DataError(
        f"label {name!r} holds values of the types {names} (sample {row}, from 0, is {plain[row]!r}); "
        "expected all text or all numbers, none missing: clean the column, or leave this label out"
    )


def digest_options(options: Frozen, *parts: str | None) -> str:
    """sha256 over a source's options, without where it lies, and any further texts."""
    plain = {
        name: value
        for name, value in options.model_dump(mode="json").items()
        if name not in ("path", "paths")
    }
    return hashlib.sha256(canonical_json([plain, *parts])).hexdigest()


def update_digest(digest: Any, value: Any) -> None:
    """Feed a key, label or value to a sha256: equal values feed equal bytes, whatever container holds them.

    Taken are text, numbers, None, sequences, mappings (by sorted key), and numpy arrays and tensors by dtype,
    shape and bytes.

    Raises:
        DataError: for any other type.
    """
    if isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}\n".encode())
        for key in sorted(value):
            update_digest(digest, str(key))
            update_digest(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"sequence {len(value)}\n".encode())
        for item in value:
            update_digest(digest, item)
    elif value is None or isinstance(value, (str, bool, int, float)):
        data = json.dumps(value).encode()
        digest.update(f"{type(value).__name__} {len(data)}\n".encode() + data)
    else:
        dtype, shape, data = _array_bytes(value)
        digest.update(f"array {dtype} {shape}\n".encode() + data)


def _array_bytes(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise DataError(f"a sample holds a numpy array of dtype {array.dtype}; expected numbers")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return array.dtype.name, array.shape, little.tobytes()
    import torch

    if not isinstance(value, torch.Tensor):
        raise DataError(
            f"a sample holds a {type(value).__module__}.{type(value).__qualname__}; expected text, a number, "
            "a tensor, a numpy array, or a dict of these"
        )
    flat = value.detach().cpu().contiguous().reshape(-1)
    return (
        str(value.dtype).removeprefix("torch."),
        tuple(value.shape),
        flat.view(torch.uint8).numpy().tobytes(),
    )

"""A torch `Dataset` made by the user's own function."""

import hashlib
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from schemas.data import FactoryData
from schemas.errors import DataError
from tasks.extract.imports import imported
from tasks.extract.sources.base import Kind, Label, Sample, Source, Table, digest_options, update_digest
from tasks.extract.turns import FORWARDS


class _Scan(NamedTuple):
    """What one pass over the items finds."""

    table: Table
    digest: str


def read(options: FactoryData, partition: str | None = None) -> Source:
    """The items of the dataset: text, tensor, dict of keyword inputs, or a pair (item, label).

    A dict may carry `key` and `label`. Other items are named by their index. Keys and labels cost one pass
    over all items, at the first call that needs them; so does the fingerprint of a dataset that has none.

    Raises:
        DataError: if the factory fails, or what it returns has no length, no items, or items of another kind.
    """
    items = _Items(options, _make(options))
    return Source(
        items.kind,
        items.length,
        lambda index: items[index].value,
        lambda: items.scan.table,
        lambda: items.own_fingerprint or items.scan.digest,
        sample=items.__getitem__,
    )


def fingerprint(options: FactoryData, partition: str | None = None) -> str | None:
    """The dataset's own `fingerprint` with the options; None if it has none: only a full pass can tell."""
    return _own_fingerprint(options, _make(options))


def _own_fingerprint(options: FactoryData, dataset: Any) -> str | None:
    own = getattr(dataset, "fingerprint", None)
    return None if own is None else digest_options(options, str(own() if callable(own) else own))


def _make(options: FactoryData) -> Any:
    function = imported(options.factory, "the data factory", DataError)
    try:
        return function(**options.arguments)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"the data factory {options.factory} raised {type(error).__name__}: {error}"
        ) from error


class _Items:
    """The items of a dataset, as samples."""

    def __init__(self, options: FactoryData, dataset: Any) -> None:
        self.name = options.factory
        self.dataset = dataset
        self._turn = threading.Lock()
        self.own_fingerprint = _own_fingerprint(options, dataset)
        try:
            self.length = len(dataset)
        except TypeError as error:
            raise DataError(
                f"{self.name} returned a {type(dataset).__name__}, which has no length; expected a torch "
                "Dataset with __len__ and __getitem__, not an iterable one"
            ) from error
        if self.length == 0:
            raise DataError(f"{self.name} returned a dataset without items; expected at least one")
        self.kind = self._kind_of(0, self._split(0)[0])
        self._options = options

    def __getitem__(self, index: int) -> Sample:
        value, key, label = self._split(index)
        kind = self._kind_of(index, value)
        if kind != self.kind:
            raise DataError(
                f"{self.name}: item {index} is {kind}, but item 0 is {self.kind}; expected one kind"
            )
        return Sample(key, value, {} if label is None else {"label": label})

    @cached_property
    def scan(self) -> _Scan:
        """Keys, labels and digest of all items, in one pass."""
        digest = hashlib.sha256(digest_options(self._options).encode())
        keys: list[str] = []
        labels: list[Label] = []
        for index in range(self.length):
            sample = self[index]
            keys.append(sample.key)
            labels.extend(sample.labels.values())
            update_digest(digest, sample)
        if labels and len(labels) != len(keys):
            raise DataError(
                f"{self.name}: {len(labels)} of {len(keys)} items carry a label; expected all or none"
            )
        return _Scan(Table(keys, {"label": labels} if labels else {}), digest.hexdigest())

    def _split(self, index: int) -> tuple[Any, str, Label | None]:
        """Value, key and label of an item."""
        item = self._item(index)
        key: Any = index
        label: Any = None
        if isinstance(item, tuple):
            if len(item) != 2:
                raise DataError(
                    f"{self.name}: item {index} is a tuple of {len(item)}; expected (item, label)"
                )
            item, label = item
        if isinstance(item, Mapping):
            key, label = item.get("key", index), item.get("label", label)
            item = {name: value for name, value in item.items() if name not in ("key", "label")}
        return item, str(key), self._scalar(index, label)

    def _item(self, index: int) -> Any:
        """One at a time, as in a process: a dataset may keep a file's place. Not beside a forward that draws: it may draw too."""
        try:
            with FORWARDS.together(), self._turn:
                return self.dataset[index]
        except (Exception, SystemExit) as error:
            raise DataError(f"{self.name}: item {index} raised {type(error).__name__}: {error}") from error

    def _kind_of(self, index: int, value: Any) -> Kind:
        if isinstance(value, str):
            return "text"
        if _is_array(value):
            return "tensor"
        if (
            isinstance(value, dict)
            and value
            and all(isinstance(k, str) and _is_array(v) for k, v in value.items())
        ):
            return "inputs"
        found = (
            {k: type(v).__name__ for k, v in value.items()}
            if isinstance(value, dict)
            else type(value).__name__
        )
        raise DataError(
            f"{self.name}: item {index} is {found}; expected a text, a tensor, a dict of keyword tensors, or "
            "one of these with a label"
        )

    def _scalar(self, index: int, label: Any) -> Label | None:
        plain = (
            label.item() if isinstance(label, np.generic) or (_is_array(label) and label.ndim == 0) else label
        )
        if plain is not None and not isinstance(plain, (str, int, float)):
            raise DataError(
                f"{self.name}: item {index} has a label of type {type(plain).__name__}; expected text or a "
                "number"
            )
        return plain


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return True
    import torch

    return isinstance(value, torch.Tensor)

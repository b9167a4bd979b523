"""Opens any source of samples, and tells cheaply what it holds.

Nothing here imports torch, transformers or pandas until a sample needs it.
"""

import threading
from collections import OrderedDict
from types import ModuleType

from schemas.base import canonical_json
from schemas.data import (
    ArrayFiles,
    Checkpoints,
    Data,
    FactoryData,
    ImageFolder,
    Recording,
    SavedDataset,
    SklearnDigits,
    StdlibDocstrings,
    TextFiles,
)
from schemas.errors import DataError
from tasks.extract.sources import arrays, digits, factory, images, saved, stdlib, steps, text
from tasks.extract.sources.base import Label, Sample, Source
from tasks.extract.sources.files import is_glob
from tasks.extract.turns import FORWARDS

__all__ = ["Label", "Sample", "Source", "fingerprint", "open_source", "partitions"]

OPEN_SOURCES = 2
"""How many sources a process keeps open, so that its units do not each read the files again."""

_READERS: dict[type, ModuleType] = {
    StdlibDocstrings: stdlib,
    SklearnDigits: digits,
    TextFiles: text,
    ImageFolder: images,
    ArrayFiles: arrays,
    SavedDataset: saved,
    FactoryData: factory,
    Recording: steps,
    Checkpoints: steps,
}

_opening = threading.RLock()
"""Threads of a process must not read the same files twice, nor change settings of the csv module under each other."""
_open: OrderedDict[tuple[bytes, str, tuple[str, ...]], Source] = OrderedDict()


def open_source(data: Data, partition: str | None = None) -> Source:
    """The samples of a source, or of one partition of it, before any subset is drawn.

    A source whose files have not changed since is returned as it was opened.

    Args:
        data: what to open.
        partition: one of `partitions(data)`; None or "" means all.

    Raises:
        DataError: if the data cannot be read or lack what is asked of them.
    """
    with _opening:
        name = (canonical_json(data.source), partition or "", _state(data, partition))
        source = _open.pop(name, None) or _read(data, partition)
        _open[name] = source
        while len(_open) > OPEN_SOURCES:
            _open.popitem(last=False)
        return source


def _read(data: Data, partition: str | None) -> Source:
    with FORWARDS.alone():  # a factory may seed generators
        source: Source = _READERS[type(data.source)].read(data.source, partition or None)
        return source


def fingerprint(data: Data, partition: str | None = None) -> str | None:
    """sha256 of what `open_source` would give, in order, with keys and labels, without opening it.

    Returns:
        The same as `open_source(data, partition).fingerprint`, or None where only a full pass can tell.

    Raises:
        DataError: if the data cannot be read.
    """
    found: str | None = _READERS[type(data.source)].fingerprint(data.source, partition or None)
    return found


def partitions(data: Data) -> list[str]:
    """One name per file where the data are partitioned by file, in order; otherwise one empty name.

    Raises:
        DataError: if the source has no files to partition by.
    """
    if data.partition_by == "none":
        return [""]
    source = data.source
    if isinstance(source, TextFiles) or (isinstance(source, ArrayFiles) and is_glob(source.path)):
        return [file.name for file in _READERS[type(source)].files(source)]
    raise DataError(
        f"partition_by: file was asked of a source of kind {source.kind!r}; expected text files, or arrays "
        "given by a glob: set partition_by: none"
    )


def _state(data: Data, partition: str | None) -> tuple[str, ...]:
    """What changes when the files of a source do; reads no contents. Empty for sources without files."""
    source = data.source
    if isinstance(source, ArrayFiles):
        found = arrays.state_files(source)
    elif isinstance(source, (TextFiles, ImageFolder, SavedDataset, Recording, Checkpoints)):
        found = _READERS[type(source)].files(source)
    else:
        return ()
    return tuple(f"{file.url} {file.tag}" for file in found if not partition or file.name == partition)

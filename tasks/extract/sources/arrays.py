"""Samples along the first axis of npy, npz and zarr arrays.

No pickle is read. A local npy is mapped, a zarr is read chunk by chunk, all else is read whole.
"""

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from schemas.data import ArrayFiles
from schemas.errors import DataError, nearest
from tasks.extract.sources.base import Source, Table, digest_options
from tasks.extract.sources.files import File, below, digest, find, is_glob, pick, reading, system_of


class _Opened(NamedTuple):
    """One file's array and labels."""

    rows: Any
    """Has shape, dtype, and gives one sample by index."""
    labels: dict[str, list[Any]]


def files(options: ArrayFiles) -> list[File]:
    """The files, or zarr folders, of a path or glob, sorted by path."""
    if not _is_zarr(options.path):
        return find([options.path])
    system, path = system_of(options.path)
    with reading(options.path):
        paths = sorted(map(str, system.glob(path))) if is_glob(path) else [path.rstrip("/")]
    if not paths:
        raise DataError(
            f"{options.path} matches no zarr; correct the path, or the working folder it is relative to"
        )
    return [File(found.rpartition("/")[2], found, system) for found in paths]


def read(options: ArrayFiles, partition: str | None = None) -> Source:
    """numpy arrays of one shape and dtype, named `<file>:<row>`, rows from 0.

    Raises:
        DataError: if an array is missing, holds no numbers, is empty, or has another shape than its labels
            or the arrays of the other files.
    """
    chosen = pick(files(options), partition)
    opened = [_open(file, options) for file in chosen]
    _check_alike(chosen, opened)
    ends = list(accumulate(len(one.rows) for one in opened))
    keys = [
        f"{file.name}:{row}" for file, one in zip(chosen, opened, strict=True) for row in range(len(one.rows))
    ]
    labels = {name: [value for one in opened for value in one.labels[name]] for name in options.labels}
    table = Table(keys, labels)

    def value(index: int) -> np.ndarray:
        which = int(np.searchsorted(ends, index, side="right"))
        rows = opened[which].rows
        with reading(f"{chosen[which].path}, row {index - ends[which] + len(rows)}"):
            return _native(np.asarray(rows[index - ends[which] + len(rows)]))

    return Source("tensor", len(keys), value, lambda: table, lambda: _identity(options, chosen))


def fingerprint(options: ArrayFiles, partition: str | None = None) -> str:
    """sha256 over the files' names and bytes and the options."""
    return _identity(options, pick(files(options), partition))


def state_files(options: ArrayFiles) -> list[File]:
    """Every file that the arrays lie in, those of zarr folders included."""
    return [part for file in files(options) for part in (below(file.url) if _is_zarr(file.path) else [file])]


def _identity(options: ArrayFiles, chosen: Sequence[File]) -> str:
    parts = [digest(below(file.url) if _is_zarr(file.path) else [file]) for file in chosen]
    return digest_options(options, *(file.name for file in chosen), *parts)


def _is_zarr(path: str) -> bool:
    return path.rstrip("/").lower().endswith(".zarr")


def _open(file: File, options: ArrayFiles) -> _Opened:
    with reading(file.path):
        if _is_zarr(file.path):
            named, rows = _zarr(file, options)
        elif file.name.lower().endswith(".npz"):
            named, rows = _npz(file, options)
        elif file.name.lower().endswith(".npy"):
            named, rows = {}, _npy(file)
        else:
            raise DataError(f"{file.path}: expected a .npy, .npz or .zarr; convert it")
        _check_rows(file, rows)
        labels = {name: _label(file, named, array, len(rows)) for name, array in options.labels.items()}
    return _Opened(rows, labels)


def _npy(file: File) -> Any:
    if file.is_local:
        return np.load(file.path, mmap_mode="r", allow_pickle=False)
    with file.system.open(file.path, "rb") as stream:
        return np.load(io.BytesIO(stream.read()), allow_pickle=False)


def _npz(file: File, options: ArrayFiles) -> tuple[Mapping[str, Any], Any]:
    with file.system.open(file.path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        wanted = {_choose(file, archive.files, options), *(set(options.labels.values()) & set(archive.files))}
        named = {name: archive[name] for name in wanted}
        others = {name: None for name in archive.files if name not in wanted}
    return {**named, **others}, named[_choose(file, list({**named, **others}), options)]


def _zarr(file: File, options: ArrayFiles) -> tuple[Mapping[str, Any], Any]:
    import zarr

    opened = zarr.open(file.url, mode="r")
    if isinstance(opened, zarr.Array):
        if options.array is not None:
            raise DataError(
                f"{file.path} is one array, yet {options.array!r} is asked for; leave `array` out"
            )
        return {}, _Chunked(opened)
    named = dict(opened.arrays())
    name = options.array if options.array and "/" in options.array else _choose(file, list(named), options)
    return named, _Chunked(opened[name])


class _Chunked:
    """Rows of a zarr array; each thread keeps one chunk of rows, so that reading in order reads every chunk once."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.n_block = int((array.shards or array.chunks or (1,))[0])
        self._kept = threading.local()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: int) -> Any:
        number = index // self.n_block
        if getattr(self._kept, "number", -1) != number:
            self._kept.rows = self.array[number * self.n_block : (number + 1) * self.n_block]
            self._kept.number = number
        return self._kept.rows[index - number * self.n_block]


def _choose(file: File, names: Sequence[str], options: ArrayFiles) -> str:
    if options.array is not None:
        if options.array not in names:
            raise DataError(
                f"{file.path} has no array {options.array!r}; it has {', '.join(names) or 'none'} "
                f"(nearest: {nearest(options.array, names)})"
            )
        return options.array
    data = [name for name in names if name not in options.labels.values()]
    if len(data) != 1:
        raise DataError(
            f"{file.path} holds the arrays {', '.join(names) or 'none'}; expected one, or its name in `array`"
        )
    return data[0]


def _check_rows(file: File, rows: Any) -> None:
    if np.dtype(rows.dtype).kind not in "biuf":
        raise DataError(f"{file.path} holds {rows.dtype}; expected real numbers")
    if len(rows.shape) < 1 or len(rows) == 0:
        raise DataError(
            f"{file.path} has the shape {tuple(rows.shape)}; expected samples along the first axis"
        )


def _check_alike(chosen: Sequence[File], opened: Sequence[_Opened]) -> None:
    first = opened[0].rows
    for file, one in zip(chosen, opened, strict=True):
        if one.rows.shape[1:] != first.shape[1:] or one.rows.dtype != first.dtype:
            raise DataError(
                f"{file.path} holds {one.rows.dtype} samples of shape {tuple(one.rows.shape[1:])}, but "
                f"{chosen[0].path} {first.dtype} of shape {tuple(first.shape[1:])}; "
                "expected one shape and dtype in all files"
            )


def _label(file: File, named: Mapping[str, Any], array: str, n_rows: int) -> list[Any]:
    if array not in named:
        raise DataError(
            f"{file.path} has no array {array!r} for a label; it has {', '.join(named) or 'no names'}: "
            "put labels beside the data in one npz or zarr group"
        )
    values = np.asarray(named[array][...])
    if values.shape != (n_rows,):
        raise DataError(
            f"{file.path}: label array {array!r} has the shape {values.shape}; expected ({n_rows},)"
        )
    decode: Callable[[Any], Any] = (lambda v: v.decode()) if values.dtype.kind == "S" else (lambda v: v)
    return [decode(value) for value in values.tolist()]


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)

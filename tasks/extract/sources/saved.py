"""A Hugging Face dataset that `save_to_disk` wrote."""

import json
from typing import Any

import numpy as np

from schemas.data import SavedDataset
from schemas.errors import DataError, nearest
from tasks.extract.sources.base import Kind, Source, Table, digest_options
from tasks.extract.sources.files import File, below, digest, reading


def read(options: SavedDataset, partition: str | None = None) -> Source:
    """Texts, or numpy arrays, of one column; rows named by the key column or `<row>`, from 0.

    A column of token ids called `input_ids` gives keyword inputs, so that rows may differ in length.

    Raises:
        DataError: if the `datasets` package, the split or a column is missing, or there is no row.
    """
    if not files(options):
        raise DataError(f"{options.path} holds no data files; expected a dataset with at least one row")
    rows = _open(options)
    labels = [options.column, *options.label_columns, *([options.key_column] if options.key_column else [])]
    for column in labels:
        if column not in rows.column_names:
            raise DataError(
                f"{options.path} has no column {column!r}; it has {', '.join(rows.column_names)} "
                f"(nearest: {nearest(column, rows.column_names)})"
            )
    values = rows.select_columns([options.column])
    kind = _kind(options, values[0][options.column])

    def value(index: int) -> Any:
        with reading(f"{options.path}, row {index}"):
            return _value(options, kind, values[index][options.column], index)

    return Source(
        kind, len(rows), value, lambda: _table(options, rows), lambda: fingerprint(options, partition)
    )


def fingerprint(options: SavedDataset, partition: str | None = None) -> str:
    """sha256 over the data files of the split and the options; `datasets` is not imported."""
    return digest_options(options, digest(files(options)))


def files(options: SavedDataset) -> list[File]:
    """The data files of the split, in the dataset's order."""
    found = {file.name: file for file in below(options.path)}
    folder = f"{options.split}/" if options.split and f"{options.split}/state.json" in found else ""
    if f"{folder}state.json" not in found:
        return [
            file for name, file in sorted(found.items()) if name.endswith(".arrow") and "cache-" not in name
        ]
    with (
        reading(options.path),
        found[f"{folder}state.json"].system.open(found[f"{folder}state.json"].path) as stream,
    ):
        state = json.loads(stream.read())
        return [found[folder + part["filename"]] for part in state["_data_files"]]


def _open(options: SavedDataset) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "reading a saved dataset needs the package datasets: pip install 'subspan[hf]'"
        ) from error
    with reading(options.path):
        loaded = datasets.load_from_disk(options.path)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded.with_format(None)
    if options.split not in loaded:
        raise DataError(
            f"{options.path} holds the splits {', '.join(loaded)}; found split: {options.split!r}, expected "
            "one of them"
        )
    return loaded[options.split].with_format(None)


def _kind(options: SavedDataset, first: Any) -> Kind:
    if isinstance(first, str):
        return "text"
    return "inputs" if options.column == "input_ids" else "tensor"


def _value(options: SavedDataset, kind: Kind, value: Any, row: int) -> Any:
    if kind == "text":
        if not isinstance(value, str):
            raise DataError(
                f"{options.path}, row {row}: column {options.column!r} holds {value!r}; expected text"
            )
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{options.path}, row {row}: column {options.column!r} gives {array.dtype}; expected text, or "
            "numbers of one shape"
        )
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    return {"input_ids": array} if kind == "inputs" else array


def _table(options: SavedDataset, rows: Any) -> Table:
    keys = (
        [str(key) for key in rows[options.key_column][:]]
        if options.key_column
        else [f"{n}" for n in range(len(rows))]
    )
    return Table(keys, {name: rows[name][:] for name in options.label_columns})

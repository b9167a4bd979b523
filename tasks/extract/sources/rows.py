"""Rows of one text file, as a stream: txt, jsonl, csv, tsv, parquet; the first four may be compressed."""

import codecs
import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from schemas.errors import DataError, nearest
from tasks.extract.sources.files import File, open_binary, reading, suffix

FORMATS = {
    "txt": "txt",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "pq": "parquet",
}
"""File suffix to format."""

PARQUET_ROWS = 4096

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
"""A number as JSON writes it: `007` is a name."""


def format_of(file: File) -> str:
    """The format that a file's suffix names.

    Raises:
        DataError: if it names none.
    """
    found = suffix(file.name)
    if found not in FORMATS:
        raise DataError(
            f"{file.path}: unknown kind of file {'.' + found if found else '(no suffix)'}; expected one of "
            f"{', '.join('.' + name for name in FORMATS)}: rename or convert it"
        )
    return FORMATS[found]


def records(file: File, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows as mappings that hold at least `columns`.

    Raises:
        DataError: if the file is malformed, or lacks a column.
    """
    readers: dict[str, Callable[[File, Sequence[str]], Iterator[Mapping[str, Any]]]] = {
        "jsonl": _jsonl,
        "csv": _csv,
        "parquet": _parquet,
    }
    return readers[format_of(file)](file, columns)


def lines(file: File) -> Iterator[str]:
    """Lines of a UTF-8 file without their ends (`\\n` or `\\r\\n`); a last empty line is none.

    Raises:
        DataError: if a line is not UTF-8.
    """
    with reading(file.path), open_binary(file) as stream:
        for number, line in enumerate(stream, start=1):
            data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield _decode(file, number, data.removesuffix(b"\n").removesuffix(b"\r"))


def _decode(file: File, number: int, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.path}, line {number}: not UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from error


def require(file: File, columns: Sequence[str], existing: Sequence[str], where: str = "") -> None:
    """Refuse a missing column.

    Raises:
        DataError: naming the column, the nearest ones, and all that exist.
    """
    for column in columns:
        if column not in existing:
            raise DataError(
                f"{file.path}{where} has no column {column!r}; it has {', '.join(existing) or 'none'} "
                f"(nearest: {nearest(column, existing)})"
            )


def _jsonl(file: File, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file.path}, line {number}: not JSON ({error}); expected one object per line"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{file.path}, line {number}: found a {type(record).__name__}, expected an object of columns"
            )
        require(file, columns, list(record), f", line {number}")
        yield record


def _csv(file: File, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    delimiter = "\t" if suffix(file.name) == "tsv" else ","
    with reading(file.path), open_binary(file) as stream, _long_fields():
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        with _csv_errors(file, reader):
            names = list(reader.fieldnames or ())
        twice = sorted({name for name in columns if names.count(name) > 1})
        if twice:
            raise DataError(
                f"{file.path}: the header names {', '.join(twice)} twice; rename one of the columns"
            )
        require(file, columns, names)
        for record in _csv_rows(file, reader):
            if None in record or None in record.values():
                raise DataError(
                    f"{file.path}, line {reader.line_num}: found a row of another length than the header's "
                    f"{len(names)} fields; quote fields that hold {delimiter!r}"
                )
            yield record


@contextmanager
def _csv_errors(file: File, reader: "csv.DictReader[str]") -> Iterator[None]:
    try:
        yield
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.path}, near line {reader.line_num + 1}: not csv in UTF-8 ({error})"
        ) from error


def _csv_rows(file: File, reader: "csv.DictReader[str]") -> Iterator[Mapping[str, Any]]:
    while True:
        with _csv_errors(file, reader):
            record = next(reader, None)
        if record is None:
            return
        yield record


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per field, which is one global."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(file: File, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    with reading(file.path), file.system.open(file.path, "rb") as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        require(file, columns, table.schema_arrow.names)
        for block in table.iter_batches(batch_size=PARQUET_ROWS, columns=list(columns)):
            yield from block.to_pylist()


def numbers(column: Sequence[Any]) -> Sequence[Any]:
    """A column of csv texts as numbers, when every one is written as a number; otherwise as it is."""
    if not all(isinstance(text, str) and _NUMBER.fullmatch(text) for text in column):
        return column
    if all(text.lstrip("-").isdigit() for text in column):
        return [int(text) for text in column]
    values = [float(text) for text in column]
    return values if all(map(math.isfinite, values)) else column

"""Samples of text from files: one per line of txt, one per row of jsonl, csv, tsv and parquet."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from schemas.data import TextFiles
from schemas.errors import DataError
from tasks.extract.sources import rows
from tasks.extract.sources.base import Label, Source, Table, digest_options, refuse_half_characters
from tasks.extract.sources.files import File, digest, find, pick


class _Texts(NamedTuple):
    keys: list[str]
    texts: list[str]
    labels: dict[str, list[Any]]


def files(options: TextFiles) -> list[File]:
    """The files, sorted by path."""
    return find(options.paths)


def read(options: TextFiles, partition: str | None = None) -> Source:
    """Texts in order of file and row, named by the key column or `<file>:<row>`, rows from 0.

    Files are read as streams; the texts stay in memory.

    Raises:
        DataError: if a file, row or column is not what is expected, or there is no text.
    """
    chosen = pick(files(options), partition)
    found = _Texts([], [], {name: [] for name in options.label_columns})
    n_skipped = 0
    for file in chosen:
        for row, record in _records(file, options):
            n_skipped += not _add(found, options, file, row, record)
    if not found.texts:
        raise DataError(
            f"no text in {', '.join(file.path for file in chosen[:5])} ({n_skipped} empty rows left out); "
            "expected at least one row"
        )
    labels = (
        {name: rows.numbers(column) for name, column in found.labels.items()}
        if _csv(chosen)
        else found.labels
    )
    table = Table(found.keys, labels)
    return Source(
        "text",
        len(found.texts),
        found.texts.__getitem__,
        lambda: table,
        lambda: _identity(options, chosen),
        n_skipped=n_skipped,
    )


def fingerprint(options: TextFiles, partition: str | None = None) -> str:
    """sha256 over the files' names and bytes and the options."""
    return _identity(options, pick(files(options), partition))


def _identity(options: TextFiles, chosen: Sequence[File]) -> str:
    return digest_options(options, digest(chosen))


def _csv(chosen: Sequence[File]) -> bool:
    return any(rows.format_of(file) == "csv" for file in chosen)


def _records(file: File, options: TextFiles) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if rows.format_of(file) == "txt":
        extra = [*options.label_columns, *([options.key_column] if options.key_column else [])]
        if extra:
            raise DataError(
                f"{file.path} is plain text without columns, yet {extra[0]!r} is asked for; use jsonl or csv"
            )
        yield from enumerate({options.text_column: line} for line in rows.lines(file))
    else:
        wanted = dict.fromkeys([options.text_column, *options.label_columns])
        if options.key_column:
            wanted[options.key_column] = None
        yield from enumerate(rows.records(file, list(wanted)))


def _add(found: _Texts, options: TextFiles, file: File, row: int, record: Mapping[str, Any]) -> bool:
    """Take one row; False if it is empty and left out."""
    where = f"{file.path}, row {row} (from 0)"
    text = record[options.text_column]
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{where}: column {options.text_column!r} holds {_short(text)} of type {type(text).__name__}; "
            "expected text: name another text_column, or convert it"
        )
    if text is None or not text.strip():
        if options.on_empty == "refuse":
            raise DataError(f"{where}: the text is empty; fill it, remove the row, or set on_empty: skip")
        return False
    refuse_half_characters(text, where)
    found.texts.append(text)
    found.keys.append(_key(options, file, row, record, where))
    for name, column in found.labels.items():
        column.append(_label(name, record[name], where))
    return True


def _key(options: TextFiles, file: File, row: int, record: Mapping[str, Any], where: str) -> str:
    if options.key_column is None:
        return f"{file.name}:{row}"
    key = record[options.key_column]
    if not isinstance(key, (str, int)) or key == "":
        raise DataError(
            f"{where}: the key column {options.key_column!r} holds {_short(key)}; expected a name or a number"
        )
    refuse_half_characters(str(key), where)
    return str(key)


def _label(name: str, value: Any, where: str) -> Label:
    if isinstance(value, (str, int, float)):
        return value
    raise DataError(
        f"{where}: the label column {name!r} holds {_short(value)}; expected text or a number: "
        "fill it, remove the row, or leave this label out"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

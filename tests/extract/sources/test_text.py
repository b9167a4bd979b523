"""Text files of every kind, against what was written; and what each error says."""

import csv
import gzip
import json
import re

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.data import TextFiles
from schemas.errors import DataError
from tasks.extract.sources import text

ROWS = [
    {"text": "first text", "id": "a", "topic": "x", "score": 1},
    {"text": 'has "quotes", commas\nand\r\nlines', "id": "b", "topic": "y", "score": 2},
    {"text": "ünïcödé \u2028 😀", "id": "c", "topic": "x", "score": 3},
]


def write_csv(rows, path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write(kind, rows, path):
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_csv(rows, path, "\t" if kind == "tsv" else ",")


def texts(source) -> list[str]:
    return [source[index].value for index in range(len(source))]


def read(*paths, **options):
    return text.read(TextFiles(paths=tuple(map(str, paths)), **options))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet"])
def test_every_format_gives_what_was_written(tmp_path, kind):
    write(kind, ROWS, tmp_path / f"data.{kind}")
    source = read(tmp_path / f"data.{kind}", key_column="id", label_columns=("topic", "score"))
    assert texts(source) == [row["text"] for row in ROWS]
    assert source.keys() == ["a", "b", "c"]
    assert source.labels() == {"topic": ["x", "y", "x"], "score": [1, 2, 3]}
    assert source[1].labels == {"topic": "y", "score": 2}
    assert source.kind == "text"
    plain = read(tmp_path / f"data.{kind}")
    assert plain.keys() == [f"data.{kind}:{n}" for n in range(3)]
    assert plain.labels() == {}


JSON_TEXT = st.text(max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(JSON_TEXT, min_size=1, max_size=8), st.sampled_from(["jsonl", "csv", "tsv", "parquet"]))
def test_any_text_survives_and_empty_ones_are_counted(tmp_path, values, kind):
    path = tmp_path / f"any.{kind}"
    write(kind, [{"text": value, "n": index} for index, value in enumerate(values)], path)
    full = [(index, value) for index, value in enumerate(values) if value.strip()]
    if not full:
        with pytest.raises(DataError, match="no text in"):
            read(path, on_empty="skip")
        return
    source = read(path, on_empty="skip", label_columns=("n",))
    assert texts(source) == [value for _, value in full]
    assert source.keys() == [f"any.{kind}:{index}" for index, _ in full]
    assert source.labels()["n"] == [index for index, _ in full]
    assert source.n_skipped == len(values) - len(full)
    if len(full) < len(values):
        with pytest.raises(DataError, match="the text is empty"):
            read(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=20), min_size=1))
def test_lines_of_txt_are_split_at_line_feeds_only(tmp_path, values):
    path = tmp_path / "any.txt"
    path.write_bytes("".join(value + "\n" for value in values).encode())
    full = [value for value in values if value.strip()]
    if full and not values[0].startswith("\ufeff"):
        assert texts(read(path, on_empty="skip")) == full


def test_txt_without_last_line_end_with_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree")
    source = read(path, on_empty="skip")
    assert texts(source) == ["one", "two", "three"]
    assert source.keys() == ["a.txt:0", "a.txt:1", "a.txt:3"]


def test_files_are_sorted_by_path_and_each_read_once(tmp_path):
    for name, line in [("b.txt", "bee"), ("a.txt", "ay"), ("sub/c.txt", "sea")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(line + "\n")
    source = read(tmp_path / "**" / "*.txt", tmp_path / "b.txt")
    assert texts(source) == ["ay", "bee", "sea"]
    assert source.keys() == ["a.txt:0", "b.txt:0", "sub/c.txt:0"]


def test_one_partition(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    options = TextFiles(paths=(str(tmp_path / "*.txt"),))
    assert texts(text.read(options, "b.txt")) == ["b"]
    assert (
        text.fingerprint(options, "a.txt") != text.fingerprint(options, "b.txt") != text.fingerprint(options)
    )
    with pytest.raises(DataError, match=re.escape("no file is called 'c.txt'; there are a.txt, b.txt")):
        text.read(options, "c.txt")


def test_remote_files_read_the_same():
    system = fsspec.filesystem("memory")
    system.pipe("/corpus/a.jsonl", b'{"text": "one"}\n')
    system.pipe("/corpus/b.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    try:
        source = read("memory://corpus/*")
        assert texts(source) == ["one", "two"]
        assert source.keys() == ["a.jsonl:0", "b.jsonl.gz:0"]
        before = text.fingerprint(TextFiles(paths=("memory://corpus/*",)))
        system.pipe("/corpus/a.jsonl", b'{"text": "uno"}\n')
        assert text.fingerprint(TextFiles(paths=("memory://corpus/*",))) != before
    finally:
        system.rm("/corpus", recursive=True)


def test_the_fingerprint_follows_bytes_names_and_options_not_the_folder(tmp_path):
    def made(folder, name="a.txt", content="one\n", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(content)
        options = TextFiles(paths=(str(tmp_path / folder / name),), **options)
        assert text.read(options).fingerprint == text.fingerprint(options)
        return text.fingerprint(options)

    first = made("x")
    assert made("y") == first
    assert made("x", content="two\n") != first
    assert made("z", name="b.txt") != first
    assert made("w", on_empty="skip") != first


def test_csv_numbers_become_numbers_and_names_stay(tmp_path):
    rows = [{"text": "t", "whole": "-3", "float": "1.5e3", "code": "007", "mixed": "1"}]
    rows.append({"text": "u", "whole": "12", "float": "2", "code": "12", "mixed": "x"})
    write_csv(rows, tmp_path / "a.csv")
    labels = read(tmp_path / "a.csv", label_columns=("whole", "float", "code", "mixed")).labels()
    assert labels == {
        "whole": [-3, 12], "float": [1500.0, 2.0], "code": ["007", "12"], "mixed": ["1", "x"],
    }  # fmt: skip


def test_long_csv_fields_are_read_and_the_global_limit_stays(tmp_path):
    before = csv.field_size_limit()
    write_csv([{"text": "x" * 200_000}], tmp_path / "a.csv")
    assert len(read(tmp_path / "a.csv")[0].value) == 200_000
    assert csv.field_size_limit() == before


def lines(*parts: bytes) -> bytes:
    return b"\n".join(parts) + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", lines(b'{"text": "x"}', b"{oops"), {}, r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", lines(b'{"text": "x"}', b"", b"[1]"), {}, r"line 3: found a list, expected an object"),
        (
            "a.jsonl",
            lines(b'{"txet": "x", "id": 1}'),
            {},
            r"line 1 has no column 'text'; it has txet, id \(nearest: txet",
        ),
        ("a.csv", b"body,id\nx,1\n", {}, r"has no column 'text'; it has body, id"),
        ("a.csv", b"text,id\nx\n", {}, r"line 2: found a row of another length than the header's 2 fields"),
        ("a.csv", b"text,id\nx,1,2\n", {}, r"line 2: found a row of another length"),
        ("a.csv", b'text\n"open\n', {}, r"near line \d+: not csv in UTF-8"),
        ("a.csv", b"text\n\xff\n", {}, r"near line \d+: not csv in UTF-8"),
        ("a.csv", b"", {}, r"has no column 'text'; it has none"),
        ("a.txt", b"ok\n\xff\n", {}, r"a\.txt, line 2: not UTF-8 .* convert the file"),
        (
            "a.jsonl",
            b'{"text": 5}\n',
            {},
            r"row 0 \(from 0\): column 'text' holds 5 of type int; expected text",
        ),
        ("a.jsonl", b'{"text": "\\ud800"}\n', {}, "half a surrogate pair"),
        (
            "a.jsonl",
            b'{"text": null}\n',
            {},
            "the text is empty; fill it, remove the row, or set on_empty: skip",
        ),
        ("a.jsonl", b'{"text": " \\n "}\n', {}, "the text is empty"),
        ("a.jsonl", b"", {}, r"no text in .*a\.jsonl .*expected at least one row"),
        (
            "a.jsonl",
            b'{"text": "x", "k": 1.5}\n',
            {"key_column": "k"},
            "key column 'k' holds 1.5; expected a name",
        ),
        (
            "a.jsonl",
            b'{"text": "x", "l": null}\n',
            {"label_columns": ("l",)},
            "label column 'l' holds None; expected text or a number",
        ),
        ("a.txt", b"x\n", {"label_columns": ("l",)}, "plain text without columns, yet 'l' is asked for"),
        ("a.xml", b"<x/>", {}, r"unknown kind of file \.xml; expected one of \.txt, \.jsonl"),
        ("plain", b"x\n", {}, r"unknown kind of file \(no suffix\)"),
        ("a.parquet", b"PAR1 no", {}, r"a\.parquet cannot be read: Arrow"),
        ("a.jsonl.gz", b"not gzip", {}, r"a\.jsonl\.gz cannot be read: BadGzipFile"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, options, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, **options)


def test_a_missing_parquet_column_is_named(tmp_path):
    write("parquet", [{"body": "x"}], tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'text'; it has body"):
        read(tmp_path / "a.parquet")


def test_repeated_keys_are_named(tmp_path):
    write("jsonl", [{"text": "x", "id": "k"}, {"text": "y", "id": "k"}], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="the key 'k' names samples 0 and 1"):
        read(tmp_path / "a.jsonl", key_column="id").keys()


def test_paths_that_match_nothing_or_a_folder_or_one_name_twice(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt matches no file"):
        read(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"is a folder; expected files: write a glob"):
        read(tmp_path)
    with pytest.raises(DataError, match="nosuch://x cannot be read: ValueError: Protocol not known"):
        read("nosuch://x")
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("x\n")
    with pytest.raises(DataError, match=r"would both be called 'a\.txt'"):
        read(tmp_path / "p" / "*.txt", tmp_path / "q" / "*.txt")


def test_reading_stops_at_the_first_bad_line(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{oops\n' + b'{"text": "x"}\n' * 100)
    parsed = []

    def spy(line):
        parsed.append(line)
        return json.JSONDecoder().decode(line)

    monkeypatch.setattr("tasks.extract.sources.rows.json.loads", spy)
    with pytest.raises(DataError, match="line 2"):
        read(path)
    assert len(parsed) == 2


@pytest.mark.parametrize("options", [{"label_columns": ("y",)}, {"key_column": "y"}])
def test_half_a_character_in_a_label_or_key_is_refused(tmp_path, options):
    """It cannot be stored: a capture with it would be sealed and never be read."""
    (tmp_path / "t.jsonl").write_text('{"text": "a", "y": "\\ud800"}\n{"text": "b", "y": "k"}\n')
    with pytest.raises(DataError, match="half a surrogate pair"):
        text.read(TextFiles(paths=(str(tmp_path / "t.jsonl"),), **options)).labels()

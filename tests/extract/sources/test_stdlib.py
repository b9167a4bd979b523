"""Docstrings of the standard library, against a plain reading with `ast.walk`."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from schemas.data import StdlibDocstrings
from schemas.errors import DataError
from tasks.extract.sources import stdlib

OUT = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages"}


def plain_texts(root: Path, least: int) -> set[str]:
    """Every long docstring, found another way: by glob and walk, in any order."""
    texts: set[str] = set()
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if OUT & set(parts) or not all(part.isidentifier() for part in parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) >= least:
                    texts.add(text)
    return texts


def test_the_same_texts_as_a_plain_reading():
    source = stdlib.read(StdlibDocstrings())
    texts = [source[index].value for index in range(len(source))]
    assert len(texts) == len(set(texts))
    assert set(texts) == plain_texts(stdlib.source_folder(), 40)
    assert 5_000 < len(texts) < 10_000


def test_keys_are_unique_and_labels_agree_with_them():
    source = stdlib.read(StdlibDocstrings())
    keys, labels = source.keys(), source.labels()
    assert len(keys) == len(set(keys))
    index = keys.index("json.decoder:JSONDecoder.decode")
    assert {name: column[index] for name, column in labels.items()} == {
        "package": "json", "module": "json.decoder", "kind": "function",
    }  # fmt: skip
    assert source[index].value.startswith("Return the Python representation of ``s``")
    assert source[index].labels == {name: column[index] for name, column in labels.items()}
    assert labels["kind"][keys.index("json")] == "module"
    assert labels["kind"][keys.index("json.decoder:JSONDecoder")] == "class"
    for key, module, package in zip(keys, labels["module"], labels["package"], strict=True):
        assert key.partition(":")[0] == module
        assert module.partition(".")[0] == package


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_order_names_and_what_is_left_out(tmp_path):
    root = write(
        tmp_path,
        {
            "b.py": '"""module b"""\ndef f():\n    """eff"""\nif 1:\n    def f():\n        """eff two"""\n',
            "a/__init__.py": '"""package a"""\n',
            "a/c.py": 'class K:\n    """class K"""\n    async def m(self):\n        """method m"""\n',
            "a/z.py": '"""package a"""\n',
            "test/t.py": '"""a test"""',
            "a/tests/t.py": '"""a test too"""',
            "site-packages/s.py": '"""somebody"""',
            "config-3.11/x.py": '"""odd folder"""',
            "broken.py": '"""does not compile""" +',
        },
    )
    source = stdlib.read(StdlibDocstrings(min_characters=1), folder=root)
    assert source.keys() == ["a", "a.c:K", "a.c:K.m", "b", "b:f", "b:f#2"]
    assert source.labels()["kind"] == ["module", "class", "function", "module", "function", "function"]
    assert [source[n].value for n in range(3)] == ["package a", "class K", "method m"]


def test_short_ones_are_left_out():
    long = stdlib.read(StdlibDocstrings(min_characters=2000))
    assert 0 < len(long) < 200
    assert min(len(long[n].value) for n in range(len(long))) >= 2000
    with pytest.raises(
        DataError, match=r"no docstring of at least 1000000 characters .* lower min_characters"
    ):
        stdlib.read(StdlibDocstrings(min_characters=1_000_000))


def test_the_fingerprint_follows_bytes_names_and_options(tmp_path):
    root = write(tmp_path, {"a.py": '"""one"""\n', "test/t.py": "x = 1\n"})
    options = StdlibDocstrings(min_characters=1)
    first = stdlib.fingerprint(options, folder=root)
    assert stdlib.read(options, folder=root).fingerprint == first
    write(root, {"test/t.py": "x = 2\n"})
    assert stdlib.fingerprint(options, folder=root) == first
    assert stdlib.fingerprint(StdlibDocstrings(min_characters=2), folder=root) != first
    write(root, {"a.py": '"""two"""\n'})
    second = stdlib.fingerprint(options, folder=root)
    assert second != first
    (root / "a.py").rename(root / "b.py")
    assert stdlib.fingerprint(options, folder=root) not in (first, second)


def test_the_fingerprint_reads_every_file_once_and_parses_none(monkeypatch):
    """So it costs a tenth of a second, where the texts cost three."""
    expected = stdlib.fingerprint(StdlibDocstrings())
    reads, read_bytes = [], Path.read_bytes

    def refuse(*_):
        raise AssertionError("parsed")

    def count(path):
        reads.append(path)
        return read_bytes(path)

    monkeypatch.setattr(stdlib, "ast", None)
    monkeypatch.setattr(stdlib, "docstrings", refuse)
    monkeypatch.setattr(Path, "read_bytes", count)
    assert stdlib.fingerprint(StdlibDocstrings()) == expected
    assert len(reads) == len(set(reads)) > 500
    assert reads == stdlib.files(stdlib.source_folder())


def test_a_python_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(
        DataError, match=r"no library sources in .*python311.zip .*use a Python that has them"
    ):
        stdlib.read(StdlibDocstrings())


def test_nothing_is_imported_and_the_order_does_not_follow_the_hash_seed():
    code = (
        "import sys\n"
        "from schemas.data import StdlibDocstrings\n"
        "from tasks.extract.sources import stdlib\n"
        "before = set(sys.modules)\n"
        "source = stdlib.read(StdlibDocstrings())\n"
        "assert not {'turtle', 'tkinter', 'antigravity', 'torch'} & set(sys.modules)\n"
        "import hashlib\n"
        "print(hashlib.sha256('\\n'.join(source.keys()).encode()).hexdigest(), source.fingerprint)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1

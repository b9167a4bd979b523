"""The docstrings of the running interpreter's standard library, read by parsing: nothing is imported.

About 6,200 texts with Python 3.11, in about 3 s, once per process.
"""

import ast
import gc
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from schemas.data import StdlibDocstrings
from schemas.errors import DataError
from tasks.extract.sources.base import Source, Table, digest_options

LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"})
"""Folders that are not read: tests, programs, deliberately odd code, and what others installed."""

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(NamedTuple):
    """One docstring and where it stands."""

    key: str
    """`module` or `module:Class.function`; a second definition of one name ends in `#2`."""
    text: str
    module: str
    kind: str
    """`module`, `class` or `function`."""


def read(options: StdlibDocstrings, partition: str | None = None, folder: Path | None = None) -> Source:
    """The docstrings, in order of module name and then of place in the file.

    Args:
        options: what is left out.
        partition: none exist.
        folder: another folder than the interpreter's.

    Raises:
        DataError: if the interpreter comes without the sources of its library.
    """
    found = _select(docstrings(folder or source_folder()), options.min_characters)
    if not found:
        raise DataError(
            f"no docstring of at least {options.min_characters} characters below {folder or source_folder()}; "
            "lower min_characters"
        )
    labels = {
        "package": [doc.module.partition(".")[0] for doc in found],
        "module": [doc.module for doc in found],
        "kind": [doc.kind for doc in found],
    }
    table = Table([doc.key for doc in found], labels)
    digest = fingerprint(options, partition, folder)
    return Source("text", len(found), lambda index: found[index].text, lambda: table, lambda: digest)


def fingerprint(options: StdlibDocstrings, partition: str | None = None, folder: Path | None = None) -> str:
    """sha256 over Python's version, the library's names and bytes, and the options; about 0.1 s."""
    root = folder or source_folder()
    digest = hashlib.sha256(platform.python_version().encode())
    for path in files(root):
        data = path.read_bytes()
        digest.update(f"\n{path.relative_to(root).as_posix()} {len(data)}\n".encode())
        digest.update(data)
    return digest_options(options, digest.hexdigest())


def source_folder() -> Path:
    """The folder of the running interpreter's standard library.

    Raises:
        DataError: if there is none, as when the library is frozen into a zip file.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "ast.py").is_file():
        raise DataError(
            f"this Python has no library sources in {folder} (found: a zip or frozen library; "
            "expected: .py files); use a Python that has them, or another source of data"
        )
    return folder


def files(root: Path) -> list[Path]:
    """The source files that are read, in one order on every machine."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name.isidentifier() and name not in LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py") and name[:-3].isidentifier()]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


@lru_cache(maxsize=2)
def docstrings(root: Path) -> tuple[Docstring, ...]:
    """Every docstring below a folder, repeats included."""
    with _collector_paused():
        names = [(path, path.relative_to(root).with_suffix("").parts) for path in files(root)]
        return tuple(doc for path, parts in names for doc in _in_file(path, parts))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees have no cycles, and searching a large process for some takes longer than the parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _in_file(path: Path, parts: tuple[str, ...]) -> Iterator[Docstring]:
    module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in old modules are not our concern
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a file that this Python cannot compile is no module of its library
    text = ast.get_docstring(tree)
    if text:
        yield Docstring(module, text, module, "module")
    uses: dict[str, int] = {}
    for name, node in _definitions(tree, ""):
        uses[name] = uses.get(name, 0) + 1
        text = ast.get_docstring(node)
        if text:
            key = f"{module}:{name}" if uses[name] == 1 else f"{module}:{name}#{uses[name]}"
            yield Docstring(key, text, module, "class" if isinstance(node, ast.ClassDef) else "function")


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            name = f"{prefix}{child.name}"
            yield name, child
            yield from _definitions(child, f"{name}.")
        elif not isinstance(child, ast.expr):
            yield from _definitions(child, prefix)


def _select(found: tuple[Docstring, ...], min_characters: int) -> list[Docstring]:
    first: dict[str, Docstring] = {}
    for doc in found:
        if len(doc.text) >= min_characters:
            first.setdefault(doc.text, doc)
    return list(first.values())

"""Files on any fsspec URL: found by name or glob, named without their folder, digested, opened."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from schemas.errors import DataError

BLOCK_BYTES = 1 << 20


class File(NamedTuple):
    """One file of a source."""

    name: str
    """Its path below the fixed part of the pattern that found it, with `/`: the same on every machine."""
    path: str
    """Its path in its file system."""
    system: Any
    """The fsspec file system."""
    tag: str = ""
    """Changes when the file does: made of the file system's size, times, inode or ETag."""

    @property
    def url(self) -> str:
        """Path with protocol, as other libraries open it."""
        return str(self.path if self.is_local else self.system.unstrip_protocol(self.path))

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's own file system."""
        protocol = self.system.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a file system or format library raises into a DataError that names the file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{what} does not exist; correct the path, or the working folder it is relative to"
        ) from error
    except PermissionError as error:
        raise DataError(
            f"{what} may not be read ({error}); check its permissions or the credentials"
        ) from error
    except Exception as error:
        raise DataError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def system_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, without stale listings, and the path in it."""
    with reading(url):
        system, path = url_to_fs(url)
        system.invalidate_cache()
        return system, str(path)


def find(patterns: Sequence[str]) -> list[File]:
    """The files that paths and globs name, each once, sorted by path.

    Raises:
        DataError: if a pattern matches nothing or names a folder, or if two files would have one name.
    """
    found = {file.path: file for pattern in patterns for file in _matches(pattern)}
    files = [found[path] for path in sorted(found)]
    names: dict[str, File] = {}
    for file in files:
        if file.name in names:
            raise DataError(
                f"{names[file.name].path} and {file.path} would both be called {file.name!r}; "
                "expected distinct names: give one glob over their common folder, such as folder/**/*.jsonl"
            )
        names[file.name] = file
    return files


def _matches(pattern: str) -> list[File]:
    system, path = system_of(pattern)
    with reading(pattern):
        if system.isfile(path):
            return [File(path.rpartition("/")[2], path, system, _tag(system.info(path)))]
        if system.isdir(path):
            raise DataError(
                f"{pattern} is a folder; expected files: write a glob such as {pattern.rstrip('/')}/*.jsonl"
            )
        found = _plain_files(system.glob(path, detail=True)) if is_glob(path) else {}
    if not found:
        raise DataError(
            f"{pattern} matches no file; correct the path, or the working folder it is relative to"
        )
    root = fixed_part(path)
    return [File(name.removeprefix(root), name, system, tag) for name, tag in found.items()]


def _plain_files(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {str(path): _tag(info) for path, info in sorted(found.items()) if info["type"] == "file"}


def _tag(info: Mapping[str, Any]) -> str:
    return hashlib.sha256(str(sorted(info.items())).encode()).hexdigest()


def is_glob(path: str) -> bool:
    """Whether a path has wildcards."""
    return any(mark in path for mark in "*?[")


def fixed_part(pattern: str) -> str:
    """The folders of a glob before its first wildcard, with the closing slash."""
    head = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
    return head[: head.rfind("/") + 1]


def below(url: str) -> list[File]:
    """Every file below a folder, sorted by path.

    Raises:
        DataError: if it is no folder.
    """
    system, path = system_of(url)
    with reading(url):
        if not system.isdir(path):
            what = "a file" if system.exists(path) else "nothing"
            raise DataError(f"{url}: found {what}, expected a folder; correct the path")
        found = _plain_files(system.find(path, detail=True))
    root = path.rstrip("/") + "/"
    return [File(name.removeprefix(root), name, system, tag) for name, tag in found.items()]


def pick(files: Sequence[File], partition: str | None) -> list[File]:
    """All files, or the one that a partition names.

    Raises:
        DataError: if no file has that name.
    """
    chosen = [file for file in files if not partition or file.name == partition]
    if not chosen:
        raise DataError(
            f"no file is called {partition!r}; there are {', '.join(file.name for file in files[:10])}"
        )
    return chosen


def digest(files: Sequence[File]) -> str:
    """sha256 over names and bytes, in order. A process does not read an unchanged file again."""
    total = hashlib.sha256()
    for file in files:
        with reading(file.url):
            total.update(f"{file.name}\n{_file_digest(file.system, file.path, file.tag)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=100_000)
def _file_digest(system: Any, path: str, tag: str) -> str:
    part = hashlib.sha256()
    with system.open(path, "rb") as stream:
        while data := stream.read(BLOCK_BYTES):
            part.update(data)
    return part.hexdigest()


@contextmanager
def open_binary(file: File) -> Iterator[IO[bytes]]:
    """The bytes of a file; `.gz`, `.bz2`, `.xz` and `.zst` are unpacked."""
    with fsspec.core.OpenFile(
        file.system, file.path, mode="rb", compression=compression(file.name)
    ) as stream:
        yield stream


def compression(name: str) -> str | None:
    """The compression that a file's name tells."""
    found: str | None = fsspec.utils.infer_compression(name)
    return found


def suffix(name: str) -> str:
    """A file's last suffix below that of its compression, in lower case, without the dot."""
    if compression(name):
        name = name.rpartition(".")[0]
    return name.rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""

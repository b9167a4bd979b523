"""A place that holds captures and artifacts: a local folder or any fsspec URL.

Credentials come only from the environment; a URL or an option that carries them is refused. Nothing is opened until the
first operation, so a Location may be pickled, sent to a worker and compared.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from schemas.errors import StoreError
from schemas.receipts import FileDigest
from schemas.urls import refuse_secret_options, refuse_secrets
from tasks.store import local
from tasks.store.local import PARTIAL, Bytes, LocalFiles
from tasks.store.remote import REQUESTS, RemoteFiles
from tasks.store.traffic import count

A = TypeVar("A")
B = TypeVar("B")

BLOCK_BYTES = 1 << 23
"""Bytes that are held in memory while a local file is hashed."""

_LOCAL = LocalFiles()


def digest_of(data: Bytes) -> FileDigest:
    """Size and BLAKE3 of some bytes: of cryptographic strength, and several times as fast as SHA-256."""
    view = memoryview(data).cast("B")
    return FileDigest(bytes=view.nbytes, blake3=blake3(view).hexdigest())


def _normal(url: str) -> str:
    if url.startswith(("file://", "local://")):
        url = unquote(urlsplit(url).path)
    if "://" not in url and "::" not in url:
        return os.path.abspath(Path(url).expanduser())
    return url.rstrip("/")


def below(path: str) -> str:
    """The path again, if it stays below where it begins: files of a store name others, and anyone may have written them.

    Raises:
        StoreError: if it leads out, or is absolute.
    """
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise StoreError(
            f"found the path {path!r}, expected one below its folder: what names it was not written by subspan"
        )
    return path


@dataclass(frozen=True)
class Location:
    """A folder or URL prefix. All paths given to its methods are relative to it, with `/` between parts."""

    url: str
    """An absolute local path, or the URL without a slash at its end."""
    options: Mapping[str, Any] | None = field(default=None, hash=False)
    """Further arguments of the fsspec file system; no credentials."""

    def __post_init__(self) -> None:
        refuse_secrets(self.url, "root")
        refuse_secret_options(self.options, "options of the file system")
        object.__setattr__(self, "url", _normal(self.url))

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine."""
        return "://" not in self.url and "::" not in self.url

    @property
    def atomic_create(self) -> bool:
        """False where `create` is only advisory: two processes could both believe that they made a name."""
        return self._files.atomic_create

    def each(self, action: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """Do something for each item, here one after the other, elsewhere `REQUESTS` at a time; what came out, in order.

        For operations on files that do not hang on each other: the time of an object store is mostly waiting. What
        the first item that failed raised is raised.
        """
        if self.is_local:
            return [action(item) for item in items]
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="requests") as pool:
            return list(pool.map(action, items))

    @property
    def _files(self) -> LocalFiles | RemoteFiles:
        return _LOCAL if self.is_local else RemoteFiles(self.url, self.options or {})

    def _full(self, path: str) -> str:
        return f"{self.url}/{below(path)}" if path else self.url

    def child(self, *parts: str) -> "Location":
        """The location below this one."""
        return Location("/".join((self.url, *map(below, parts))), self.options)

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or a range of them; a negative start counts from the end.

        Raises:
            NotFoundError: if there is no such file.
            StoreError: if the back end refuses, stalls or cannot be reached.
        """
        data = self._files.read(self._full(path), start, stop)
        count(read=len(data))
        return data

    def write(self, path: str, data: Bytes, *, durable: bool = True) -> None:
        """Replace a file in one step; readers see the old bytes or the new ones. Durable on return.

        Args:
            path: where.
            data: what.
            durable: False leaves the durability of bytes and name to a later `sync` of many files.

        Raises:
            ResourceError: if the disk is full, with the bytes needed and free.
            StoreError: if the back end refuses, stalls or cannot be reached.
        """
        self._files.write(self._full(path), data, durable=durable)
        count(written=memoryview(data).nbytes)

    def stage(self, path: str, data: Bytes) -> str:
        """Write a file under a name that no reader looks at, to be published or deleted; returns that name. Local folders only.

        Raises:
            ResourceError: if the disk is full, with the bytes needed and free.
            StoreError: if the back end refuses.
        """
        staged = _LOCAL.stage(self._full(path), data)
        count(written=memoryview(data).nbytes)
        return staged.removeprefix(f"{self.url}/")

    def publish(self, partial: str, path: str) -> None:
        """Give a staged file its name in one step; its durability is left to a later `sync`."""
        _LOCAL.publish(self._full(partial), self._full(path))

    def create(self, path: str, data: Bytes) -> bool:
        """Make a file unless its name is taken; whether it was made. See `atomic_create`."""
        made = self._files.create(self._full(path), data)
        count(written=memoryview(data).nbytes if made else 0)
        return made

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""
        return self._files.size(self._full(path))

    def ls(self, path: str = "") -> list[str]:
        """Names of files and folders in a folder, sorted; empty if there is no such folder."""
        return self._files.names(self._full(path))

    def sweep(self, folder: str) -> None:
        """Delete what interrupted writes left below a folder; an object store keeps nothing of them under a name."""
        for path in self.walk(folder) if self.is_local else ():
            if path.endswith(PARTIAL):
                self.delete(f"{folder}/{path}")

    def sweep_old(self, folder: str) -> None:
        """Delete what writes left in a folder that several processes write into, if it is old enough to be nobody's."""
        for name in local.old_partials(self._full(folder)) if self.is_local else ():
            self.delete(f"{folder}/{name}")

    def walk(self, path: str = "") -> dict[str, int]:
        """Every file below a folder, by its path from there, with its size in bytes."""
        return self._files.walk(self._full(path))

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, an empty folder, or everything below; nothing happens if it is not there."""
        self._files.delete(self._full(path), recursive=recursive)

    def sync(self, paths: Iterable[str]) -> None:
        """Make written files durable, bytes and names. Costs an fsync per file and folder, locally only."""
        self._files.sync(self.url, [self._full(path) for path in paths])

    def digest(self, path: str) -> FileDigest:
        """Size and BLAKE3 of a file, read in blocks where it is local."""
        if not self.is_local:
            return digest_of(self.read(path))
        total, hasher = 0, blake3()
        while block := self.read(path, total, total + BLOCK_BYTES):
            hasher.update(block)
            total += len(block)
        return FileDigest(bytes=total, blake3=hasher.hexdigest())

    def free_bytes(self) -> int | None:
        """Bytes that may still be written, None where that cannot be known."""
        return local.free_bytes(self.url) if self.is_local else None

    def refuses_writing(self) -> str:
        """Why nothing can be written here, as far as a look at local folders tells; else empty."""
        return local.refuses_writing(self.url) if self.is_local else ""


__all__ = ["PARTIAL", "Bytes", "Location", "digest_of"]

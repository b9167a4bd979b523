"""Files of the local disk: atomic replacement, exclusive creation, and durability by fsync."""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from schemas.errors import NotFoundError, ResourceError, StoreError
from tasks.store.direct import DIRECT, pays_off, write_direct

PARTIAL = ".partial"
"""Suffix of a file that is being written; never read, deleted when a capture is sealed."""
OLD_SECONDS = 3600.0
"""After which others take a write for ended: files in folders that they share are small."""

Bytes = bytes | bytearray | memoryview

SYNCS = 16
"""Files and folders synced at a time: the file system makes one journal entry of many."""


@contextlib.contextmanager
def _translated(path: str, needed: int = 0) -> Iterator[None]:
    """Turn what the operating system refuses into a message with its cure."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no file {path}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"the disk is full: {path} needs {needed:,} bytes, {free_bytes(path):,} are free; "
                "free space and run again: finished units are kept"
            ) from error
        raise StoreError(
            f"cannot use {path}: {error.strerror or error}; check that it is writable"
        ) from error


def _sync(path: str) -> None:
    with _translated(path):
        _sync_directory(path)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def _dump(path: str, data: Bytes, *, durable: bool = True) -> None:
    """Write a new file and, unless that is left to a later `sync`, make its bytes durable."""
    view = memoryview(data).cast("B")
    descriptor, direct = _open_new(path, len(view))
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        if direct:
            write_direct(descriptor, view)
        else:
            while view:
                view = view[file.write(view) :]
        if durable:
            os.fsync(descriptor)


def _open_new(path: str, n_bytes: int) -> tuple[int, bool]:
    """A descriptor of a file that did not exist, and whether it goes past the page cache."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    if pays_off(n_bytes):
        try:
            return _open_in_folder(path, flags | DIRECT), True
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system does not know direct writing
                raise
            with contextlib.suppress(FileNotFoundError):  # Linux makes the file before it refuses the flag
                os.unlink(path)
    return _open_in_folder(path, flags), False


def _open_in_folder(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, flags, 0o666)


def free_bytes(path: str) -> int:
    """Bytes that may still be written below a path, which need not exist yet."""
    return shutil.disk_usage(_nearest(path)).free


def old_partials(folder: str) -> list[str]:
    """Names in a folder that writes left which nobody goes on with: they were begun `OLD_SECONDS` ago or earlier."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.endswith(PARTIAL)]
        return sorted(one.name for one in left if time.time() - one.stat().st_mtime > OLD_SECONDS)


def refuses_writing(path: str) -> str:
    """Why a folder, which need not exist yet, cannot be made or written into; else empty."""
    place = _nearest(path)
    if not place.is_dir():
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} is read-only for this user"


def _nearest(path: str) -> Path:
    """The path, or what exists nearest above it."""
    place = Path(path)
    while not os.path.exists(place):  # False, not an error, below a folder that may not be searched
        place = place.parent
    return place


class LocalFiles:
    """Operations on absolute paths."""

    atomic_create = True

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes from start to stop; a negative start counts from the end."""
        with _translated(path), open(path, "rb", buffering=0) as file:
            if start is None and stop is None:
                return file.readall()
            size = os.fstat(file.fileno()).st_size
            first, last, _ = slice(start, stop).indices(size)
            return os.pread(file.fileno(), max(last - first, 0), first)

    def write(self, path: str, data: Bytes, *, durable: bool = True) -> None:
        """Replace a file in one step; its bytes and name are durable on return, unless that is left to `sync`."""
        self.publish(self.stage(path, data, durable=durable), path)
        if durable:
            with _translated(path):
                _sync_directory(os.path.dirname(path))

    def stage(self, path: str, data: Bytes, *, durable: bool = False) -> str:
        """Write a file under a name beside its own that no reader looks at; returns that name."""
        partial = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
        with _translated(path, memoryview(data).nbytes), _removed_on_failure(partial):
            _dump(partial, data, durable=durable)
        return partial

    def publish(self, partial: str, path: str) -> None:
        """Give a staged file its name, in one step."""
        with _translated(path), _removed_on_failure(partial):
            os.replace(partial, path)

    def create(self, path: str, data: Bytes) -> bool:
        """Make a file that did not exist, whole or not at all; False if it exists."""
        partial = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
        with _translated(path, memoryview(data).nbytes), _removed_on_failure(partial):
            _dump(partial, data)
            try:
                _link(partial, path, data)
            except FileExistsError:
                return False
            finally:
                os.unlink(partial)
            _sync_directory(os.path.dirname(path))
        return True

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            with _translated(path):
                return os.stat(path).st_size if os.path.isfile(path) else None
        except NotFoundError:
            return None

    def names(self, path: str) -> list[str]:
        """What lies in a folder, sorted; empty if there is none."""
        try:
            with _translated(path):
                return sorted(os.listdir(path))
        except NotFoundError:
            return []

    def walk(self, path: str) -> dict[str, int]:
        """Every file below a folder, by its path from there, with its size."""
        found: dict[str, int] = {}
        for folder, _, files in os.walk(path):
            for name in files:
                full = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):  # a partial file may vanish meanwhile
                    found[os.path.relpath(full, path)] = os.stat(full).st_size
        return found

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, an empty folder, or everything below; nothing happens if it is not there."""
        with _translated(path), contextlib.suppress(FileNotFoundError):
            if not os.path.isdir(path) or os.path.islink(path):
                os.unlink(path)
            elif recursive:
                shutil.rmtree(path)
            else:
                os.rmdir(path)

    def sync(self, root: str, paths: Iterable[str]) -> None:
        """Make files below root durable, bytes and names: together, so that they wait for the disk once."""
        files = list(paths)
        folders = {root}
        for path in files:
            folder = os.path.dirname(path)
            while len(folder) > len(root) and folder not in folders:
                folders.add(folder)
                folder = os.path.dirname(folder)
        with ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, files))
            list(pool.map(_sync, folders))


def _link(partial: str, path: str, data: Bytes) -> None:
    """Give a written file its name unless the name is taken (FileExistsError)."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _dump(path, data)  # no hard links here: still exclusive, but a crash may leave it short


@contextlib.contextmanager
def _removed_on_failure(partial: str) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise

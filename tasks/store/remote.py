"""Objects behind any fsspec URL: reading, putting, listing.

File systems are made once per process and kept: an asynchronous one must not cross a fork, and a client costs a
tenth of a second. The retries of s3fs and botocore are switched off in favour of ours (see `retry`).
"""

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from schemas.errors import NotFoundError, StoreError
from tasks.store.local import Bytes
from tasks.store.retry import retried

STALL_SECONDS = 30.0
"""Longest silence of a back end, beyond the time that bytes may take."""
SLOWEST_BYTES_PER_SECOND = 250_000.0
LARGEST_READ = 1 << 26
"""Bytes that a read, listing or recursive deletion is allowed time for; a stalled read ends earlier."""
REQUESTS = 8
"""Most requests that one step has under way at a time: shards, receipts, objects that are hashed. Below the ten connections of a client."""
LARGEST_PUT = 5 << 30
"""Longest object of S3 in one request."""
S3 = ("s3", "s3a")
S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "skip_instance_cache": True,
    "max_concurrency": 1,  # more would ask for the size before each read
}
S3_ENVIRONMENT = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "FSSPEC_S3_ENDPOINT_URL",
)
S3_CONFIG: dict[str, Any] = {
    "connect_timeout": 4,
    "read_timeout": 20,
    "retries": {"total_max_attempts": 1, "mode": "standard"},
}

_systems: dict[tuple[str, ...], Any] = {}
_lock = threading.Lock()


def _connect(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URL and the path in it; one per process, kind and environment."""
    kind = url if "::" in url else url.partition("://")[0]
    surroundings = [f"{name}={os.environ.get(name)}" for name in S3_ENVIRONMENT] if kind in S3 else []
    key = (str(os.getpid()), kind, repr(sorted(options.items())), *surroundings)
    with _lock:
        if key not in _systems:
            _systems[key] = _make(url, dict(options))
        system = _systems[key]
    return system, str(system._strip_protocol(url)).rstrip("/")


def _make(url: str, options: dict[str, Any]) -> Any:
    from fsspec.core import url_to_fs

    s3 = url.partition("://")[0] in S3
    if s3:
        config = {**S3_CONFIG, **options.pop("config_kwargs", {})}
        options = {**S3_OPTIONS, **options, "config_kwargs": config}
    try:
        system, _ = url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise StoreError(
            f"cannot open {url}: {error}; use a local path, s3://, or another fsspec URL"
        ) from error
    if s3:
        system.retries = 1
    return system


def _call(system: Any, name: str, *given: Any, n_bytes: int = 0, **named: Any) -> Any:
    """Do one operation within a time that allows for its bytes.

    The limit is ours because a client that waits for the go-ahead of a PUT has none of its own.
    """
    if not system.async_impl:
        return getattr(system, name)(*given, **named)
    from fsspec.asyn import sync

    seconds = STALL_SECONDS + n_bytes / SLOWEST_BYTES_PER_SECOND
    return sync(system.loop, getattr(system, f"_{name}"), *given, timeout=seconds, **named)


class RemoteFiles:
    """Operations on URLs below one root."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.options = options
        self.protocol = url.partition("://")[0]

    @property
    def atomic_create(self) -> bool:
        """Whether two processes cannot both create one name."""
        return self.protocol in (*S3, "memory")

    @property
    def _whole(self) -> dict[str, int]:
        """Arguments for one PUT whatever the size: an upload in parts that a kill or our time limit ends leaves parts that cost money."""
        return {"chunksize": LARGEST_PUT} if self.protocol in S3 else {}

    def _at(self, url: str) -> tuple[Any, str]:
        system, root = _connect(self.url, self.options)
        return system, root + url[len(self.url) :]

    def read(self, url: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes from start to stop; a negative start counts from the end."""

        def action() -> bytes:
            system, path = self._at(url)
            return bytes(_call(system, "cat_file", path, n_bytes=LARGEST_READ, start=start, end=stop))

        return retried(action, url)

    def write(self, url: str, data: Bytes, *, durable: bool = True) -> None:
        """Put an object; object stores make it durable and visible in one step."""
        del durable  # means something for local folders only
        whole = bytes(data)

        def action() -> None:
            system, path = self._at(url)
            _call(system, "pipe_file", path, whole, n_bytes=len(whole), **self._whole)

        retried(action, url, len(whole))

    def create(self, url: str, data: Bytes) -> bool:
        """Put an object unless the name is taken; an own earlier try that did arrive counts as success."""
        whole, tries = bytes(data), 0

        def action() -> None:
            nonlocal tries
            tries += 1
            system, path = self._at(url)
            _call(system, "pipe_file", path, whole, n_bytes=len(whole), mode="create", **self._whole)

        try:
            retried(action, url, len(whole), exclusive=True)
        except FileExistsError:
            return tries > 1 and self.read(url) == whole
        return True

    def size(self, url: str) -> int | None:
        """Bytes of an object; None if there is none."""

        def action() -> int | None:
            system, path = self._at(url)
            found = _call(system, "info", path)
            return int(found["size"]) if found["type"] == "file" else None

        try:
            return retried(action, url)
        except NotFoundError:
            return None

    def names(self, url: str) -> list[str]:
        """What lies directly below a prefix, sorted; empty if there is nothing."""

        def action() -> list[str]:
            system, path = self._at(url)
            found = _call(system, "ls", path, detail=False)
            return sorted(
                str(name).rstrip("/").rpartition("/")[2] for name in found if str(name).strip("/") != path
            )

        try:
            return retried(action, url)
        except NotFoundError:
            return []

    def walk(self, url: str) -> dict[str, int]:
        """Every object below a prefix, by its path from there, with its size."""

        def action() -> dict[str, int]:
            system, path = self._at(url)
            found = _call(system, "find", path, n_bytes=LARGEST_READ, detail=True)
            return {str(name)[len(path) + 1 :]: int(entry["size"]) for name, entry in found.items()}

        try:
            return {name: size for name, size in retried(action, url).items() if name}
        except NotFoundError:
            return {}

    def delete(self, url: str, *, recursive: bool = False) -> None:
        """Remove an object or everything below a prefix; nothing happens if it is not there."""

        def action() -> None:
            system, path = self._at(url)
            if recursive:
                _call(system, "rm", path, n_bytes=LARGEST_READ, recursive=True)
            else:
                _call(system, "rm_file", path)

        try:
            retried(action, url)
        except NotFoundError:
            return

    def sync(self, root: str, paths: Iterable[str]) -> None:
        """Nothing to do: a PUT that returned is durable."""

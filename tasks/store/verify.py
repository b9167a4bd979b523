"""Hashing a sealed capture again, to name everything that is not as it was."""

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from schemas.errors import DamageError, NotFoundError
from schemas.receipts import FileDigest
from tasks.store.location import Location
from tasks.store.manifest import read_manifest
from tasks.store.paths import STATES, capture_path, manifest_path, receipts_path

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Damage(NamedTuple):
    """A file that is not as it was sealed."""

    path: str
    """Below the root."""
    what: str


def verify(root: Location, capture_id: str, progress: Progress | None = None) -> list[Damage]:
    """Read every byte of a sealed capture and compare it with the manifest.

    Finds files that are deleted, cut, extended, changed, or that nobody sealed; receipts and metadata too.
    Costs one read of everything and about a second per 1.5 GB for hashing.

    Returns:
        What is damaged, by path; empty if the capture is whole.

    Raises:
        NotFoundError: if the capture is not sealed.
    """
    try:
        manifest = read_manifest(root, capture_id)
    except DamageError as error:
        return [Damage(manifest_path(capture_id), str(error))]
    place, receipts = capture_path(capture_id), receipts_path(capture_id)
    expected = {
        path if path.startswith(STATES) else f"{place}/{path}": d for path, d in manifest.files.items()
    }
    expected |= {f"{receipts}/{name}": digest for name, digest in manifest.receipts.items()}
    found = {
        f"{folder}/{path}": size for folder in (place, receipts) for path, size in root.walk(folder).items()
    }
    count = _Count(progress, sum(digest.bytes for digest in expected.values()))

    def check(path: str) -> list[Damage]:
        what = compare(root, path, expected[path])
        count(expected[path].bytes)
        return [Damage(path, what)] if what else []

    damages = root.each(check, sorted(expected))
    return [damage for some in damages for damage in some] + unknown(found, expected)


class _Count:
    """Bytes done, told by several threads."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()

    def __call__(self, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes
            if self._progress:
                self._progress(self._done, self._total)


def compare(root: Location, path: str, digest: FileDigest) -> str:
    """What is wrong with a file; empty if nothing is."""
    hashed = digest_or_none(root, path)
    if hashed is None:
        return "missing"
    if hashed.bytes != digest.bytes:
        return f"has {hashed.bytes:,} bytes, sealed with {digest.bytes:,}"
    return "" if hashed == digest else "its bytes changed"


def digest_or_none(place: Location, path: str) -> FileDigest | None:
    """Size and hash of a file; None if there is none."""
    try:
        return place.digest(path)
    except NotFoundError:
        return None


def unknown(found: Iterable[str], expected: Iterable[str]) -> list[Damage]:
    """Files that nobody sealed."""
    return [Damage(path, "unknown file, not part of the seal") for path in sorted(set(found) - set(expected))]

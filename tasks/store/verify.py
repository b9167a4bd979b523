"""Hashing a sealed capture again, to name everything that is not as it was."""

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
    total, done, damages = sum(digest.bytes for digest in expected.values()), 0, []
    for path, digest in sorted(expected.items()):
        what = compare(root, path, digest)
        damages += [Damage(path, what)] if what else []
        done += digest.bytes
        if progress:
            progress(done, total)
    return damages + unknown(found, expected)


def compare(root: Location, path: str, digest: FileDigest) -> str:
    """What is wrong with a file; empty if nothing is."""
    size = root.size(path)
    if size is None:
        return "missing"
    if size != digest.bytes:
        return f"has {size:,} bytes, sealed with {digest.bytes:,}"
    try:
        return "" if root.digest(path) == digest else "its bytes changed"
    except NotFoundError:
        return "missing"


def unknown(found: Iterable[str], expected: Iterable[str]) -> list[Damage]:
    """Files that nobody sealed."""
    return [Damage(path, "unknown file, not part of the seal") for path in sorted(set(found) - set(expected))]

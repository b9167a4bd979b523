"""Manifests: a capture is readable if and only if its manifest is there and holds."""

from functools import lru_cache

from pydantic import ValidationError

from schemas.base import unchanged
from schemas.capture import SCHEMA_VERSION
from schemas.errors import DamageError, NotFoundError, StoreError
from schemas.receipts import Manifest
from tasks.store.location import Location
from tasks.store.paths import CAPTURES, manifest_path

_SUFFIX = ".manifest.json"


def is_sealed(root: Location, capture_id: str) -> bool:
    """Whether a capture has its manifest."""
    return root.exists(manifest_path(capture_id))


def read_manifest(root: Location, capture_id: str) -> Manifest:
    """The manifest of a sealed capture, whose own digest holds.

    Raises:
        NotFoundError: if the capture is not sealed, or not there.
        DamageError: if the manifest was changed.
        StoreError: if a newer subspan wrote it.
    """
    path = manifest_path(capture_id)
    try:
        data = root.read(path)
    except NotFoundError as error:
        raise NotFoundError(
            f"{root.url} holds no sealed capture {capture_id}; run the capture to its end"
        ) from error
    return parse_manifest(data, capture_id, f"{root.url}/{path}")


@lru_cache(maxsize=4)
def parse_manifest(data: bytes, capture_id: str, where: str) -> Manifest:
    """A manifest from exactly the bytes that were written; the last ones are kept, as stages at the sites of a capture all ask for it.

    Raises:
        DamageError: if it is none, or was changed.
        StoreError: if a newer subspan wrote it.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise DamageError(f"{where} is no manifest; restore it from a copy, or capture again") from error
    if manifest.schema_version > SCHEMA_VERSION:
        raise StoreError(
            f"{where} has schema_version {manifest.schema_version}, this subspan reads up to "
            f"{SCHEMA_VERSION}: install a newer subspan"
        )
    if not unchanged(data) or manifest.capture != capture_id:
        raise DamageError(f"{where} was changed after sealing; restore it from a copy, or capture again")
    return manifest


def list_captures(root: Location) -> list[str]:
    """Ids of all sealed captures, sorted."""
    return sorted(name.removesuffix(_SUFFIX) for name in root.ls(CAPTURES) if name.endswith(_SUFFIX))

"""The result of a stage, as it lies on disk."""

from typing import Any

from pydantic import Field

from schemas.base import Digested, Frozen
from schemas.receipts import FileDigest, Fingerprint
from schemas.stage import ResolvedStage


class ArrayInfo(Frozen):
    """An array of an artifact."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class Artifact(Digested):
    """artifact.json: written last, so that its presence is completeness."""

    schema_version: int
    id: str
    stage: ResolvedStage
    result: dict[str, Any]
    """The method's Result as JSON; NaN and infinities are null."""
    arrays: dict[str, ArrayInfo]
    """What lies in arrays.zarr."""
    files: dict[str, FileDigest] = Field(default_factory=dict)
    """Every object below the artifact's folder but this one."""
    rows_used: int = 0
    rows_dropped: int = 0
    """Rows of failed samples, or unmatched in a join."""
    seconds: float
    fingerprint: Fingerprint
    finished: str

"""The base of every schema: a frozen model that refuses unknown keys, and ids made from content."""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

ID_LENGTH = 20
"""Hex digits of an id: 80 bits, so that a million captures collide with probability 4e-13."""


class Frozen(BaseModel):
    """A value: immutable, hashable by its JSON, and intolerant of misspelt keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def canonical_json(value: Any) -> bytes:
    """Bytes that are equal for equal values: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: if a float is NaN or infinite, which JSON cannot hold.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def sha256(data: bytes) -> str:
    """Hex SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def content_id(value: Any) -> str:
    """The id of a question: the same question has the same id on every machine."""
    return sha256(canonical_json(value))[:ID_LENGTH]


class Digested(Frozen):
    """A value that carries the hash of its own content, so that a changed file is never taken for it."""

    digest: str = ""
    """sha256 over the canonical JSON with an empty digest."""

    def with_digest(self) -> Self:
        """The same value with its digest filled in."""
        return self.model_copy(update={"digest": self._own_digest()})

    def holds(self) -> bool:
        """Whether the digest agrees with the content."""
        return self.digest == self._own_digest()

    def _own_digest(self) -> str:
        return sha256(canonical_json(self.model_copy(update={"digest": ""})))

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """The value from exactly the bytes that were written; None if they are anything else."""
        try:
            value = cls.model_validate_json(data)
        except ValidationError:
            return None
        return value if unchanged(data) else None


def unchanged(data: bytes) -> bool:
    """Whether these are exactly the bytes of a digested value as it was written, by this version or by an older one.

    A field that came later has a default and is not in the bytes: that is no damage.
    """
    plain = json.loads(data)
    if not isinstance(plain, dict):
        return False
    return (
        plain.get("digest") == sha256(canonical_json({**plain, "digest": ""}))
        and canonical_json(plain) == data
    )

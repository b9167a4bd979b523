"""Every error a user can meet. Messages say what was found, what was expected, where, and the cure.

Each error is also the builtin that a caller would catch. `exit_code` is what the command line returns.
"""

import difflib
from collections.abc import Iterable


class SubspanError(Exception):
    """The base of all refusals."""

    exit_code = 1


class SpecError(SubspanError, ValueError):
    """A run file, form or option is wrong."""


class CredentialsError(SubspanError, PermissionError):
    """A secret stands where it would be stored. Not a ValueError: pydantic would wrap it, with the value in its message."""


class UnknownNameError(SpecError):
    """A name that is none of the valid ones: the message lists the nearest."""


class ModelError(SubspanError, RuntimeError):
    """The network cannot be loaded or does not do what a capture needs."""


class DataError(SubspanError, ValueError):
    """The data cannot be read, or lack what the run asks of them."""


class StoreError(SubspanError, OSError):
    """The storage refused, stalled or is unreachable."""


class NotFoundError(StoreError, FileNotFoundError):
    """There is no such capture, artifact or file."""


class OccupiedError(StoreError, FileExistsError):
    """The place holds something that subspan did not make."""


class LeaseError(StoreError):
    """Another process is at work on the same capture."""


class DamageError(StoreError):
    """Sealed bytes are missing or changed."""


class ResourceError(SubspanError, MemoryError):
    """Memory, disk or a device does not suffice; the message has both numbers."""


class MethodError(SubspanError, ValueError):
    """A method was given what it cannot take: NaN rows, too many rows, a wrong shape."""


class FingerprintError(SubspanError, RuntimeError):
    """Workers of different versions, devices or thread counts would mix in one capture."""


class UnitError(SubspanError, RuntimeError):
    """A unit of work failed on a worker; the message says which and why."""


def nearest(name: str, valid: Iterable[str], limit: int = 5) -> str:
    """The valid names closest to a wrong one, for an error message.

    Falls back to the first names in order when nothing is close.
    """
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.4) or names[:limit]
    rest = f" (of {len(names)})" if len(names) > len(close) else ""
    return ", ".join(close) + rest if close else "none exist"

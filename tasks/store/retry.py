"""Trying again what may pass, and messages that name the URL and the cure for what does not.

The retries are ours alone: three nested loops of them, in s3fs, botocore and here, would turn a wrong address into
minutes of silence.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from schemas.errors import NotFoundError, ResourceError, StoreError
from tasks.store.events import tell

T = TypeVar("T")
LOG = logging.getLogger(__name__)
Kind = Literal["missing", "exists", "bucket", "unreachable", "transient", "full", "refused"]

UNREACHABLE_SECONDS = 10.0
"""How long an address that takes no connection is tried."""
TRANSIENT_SECONDS = 120.0
"""How long a back end that answers with passing errors, or stalls, is tried."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
_jitter = random.Random()
"""Of its own: forwards watch the generator of the process."""

_UNREACHABLE_NAMES = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ClientConnectorError",
    "ProxyConnectionError",
}
_TRANSIENT_MODULES = ("aiohttp", "botocore", "aiobotocore", "urllib3", "http", "requests")
_PERMANENT_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ParamValidationError",
    "InvalidRegionError",
}
_TRANSIENT_NUMBERS = {
    getattr(errno, name)
    for name in ("EBUSY", "EIO", "EREMOTEIO", "EAGAIN", "ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "EPIPE")
    if hasattr(errno, name)
}
UNCONDITIONAL = {"NotImplemented", "InvalidArgument", "InvalidRequest", "501", "400"}
"""What stores answer that know no `If-None-Match`."""
_TRANSIENT_CODES = {"ConditionalRequestConflict", "RequestTimeout", "IncompleteBody", "BadDigest"}


def _code(error: BaseException) -> str:
    """The code that an object store answered with, empty if it did not answer."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    answered = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(answered.get("Code", ""))


def classify(error: BaseException) -> Kind:
    """What an error of a back end means for the one who asked."""
    code, name = _code(error), type(error).__name__
    if code == "NoSuchBucket":
        return "bucket"
    if code in _TRANSIENT_CODES:
        return "transient"
    if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
        return "exists"
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return "missing"
    if name in _UNREACHABLE_NAMES or isinstance(error, ConnectionRefusedError):
        return "unreachable"
    if isinstance(error, PermissionError) or name in _PERMANENT_NAMES:
        return "refused"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "full"
    passing = isinstance(error, TimeoutError | ConnectionError | EOFError)
    numbered = isinstance(error, OSError) and error.errno in _TRANSIENT_NUMBERS
    foreign = type(error).__module__.partition(".")[0] in _TRANSIENT_MODULES
    return "transient" if passing or numbered or foreign else "refused"


def _refusal(
    kind: Kind, error: BaseException, url: str, seconds: float, needed: int, exclusive: bool
) -> Exception:
    said = f"{type(error).__name__}: {error}"
    if kind == "missing":
        return NotFoundError(f"there is no object {url}")
    if kind == "bucket":
        return StoreError(f"the bucket of {url} does not exist; create it, or correct the URL")
    if kind == "unreachable":
        return StoreError(
            f"cannot reach the back end of {url} (tried for {seconds:.0f} s; {said}); check the address "
            "(AWS_ENDPOINT_URL for S3) and that the server runs"
        )
    if kind == "full":
        return ResourceError(
            f"the back end of {url} is full: {needed:,} bytes are needed, none are free; free space"
        )
    if kind == "transient":
        return StoreError(
            f"{url} kept failing for {seconds:.0f} s ({said}); run again when the back end is well"
        )
    if kind == "exists":
        return StoreError(
            f"the back end demands a condition for {url} ({said}): a policy of the bucket; objects below the root must be replaceable"
        )
    if exclusive and _code(error) in UNCONDITIONAL:
        return StoreError(
            f"the back end does not make {url} on the condition that there is none ({said}), which leases and seals need: use a store with "
            "conditional writes (If-None-Match), as S3 has them"
        )
    return StoreError(
        f"the back end refused {url} ({said}); check the credentials in the environment (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE for S3) and their rights"
    )


def retried(action: Callable[[], T], url: str, needed: int = 0, exclusive: bool = False) -> T:
    """Do it, again after a growing pause while the error may pass.

    Args:
        action: what is done.
        url: of what, for messages.
        needed: bytes, for messages.
        exclusive: whether it makes a name that must be free.

    Raises:
        FileExistsError: if an exclusive creation found the name taken.
        NotFoundError, StoreError, ResourceError: with the URL and the cure.
    """
    begin, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except Exception as error:
            kind, seconds = classify(error), time.monotonic() - begin
            if exclusive and _code(error) in UNCONDITIONAL:
                kind = "refused"  # it will not learn
            limit = {"unreachable": UNREACHABLE_SECONDS, "transient": TRANSIENT_SECONDS}.get(kind, 0.0)
            if kind == "exists" and exclusive:
                raise FileExistsError(url) from error
            if seconds + pause > limit:
                raise _refusal(kind, error, url, seconds, needed, exclusive) from error
            tell(
                LOG,
                "store.retry",
                logging.WARNING,
                url=url,
                kind=kind,
                seconds=seconds,
                reason=f"{type(error).__name__}: {error}",
            )
        time.sleep(pause * _jitter.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

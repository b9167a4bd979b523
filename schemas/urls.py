"""Secrets in URLs: a URL is stored in specs, ids, plans, receipts and reports, so one that carries a secret is refused."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from schemas.errors import CredentialsError

_NAMES = (
    r"(?:[\w.-]*(?:secret|token|password|passwd|signature|credential|passphrase)|key|username|sig|auth|bearer|connection_string|google_?access_?id|"
    r"(?:[\w.-]*(?:access|account|api|private|secret)[_-]?key)(?:_?id)?|x-(?:amz|goog)-[a-z-]+)"
)
_OPTION = re.compile(_NAMES, re.IGNORECASE)
_QUERY = re.compile(rf"(?<=[?&;#])({_NAMES})=([^\s&;#]*)", re.IGNORECASE)
_USER = re.compile(r"^(?:[^/?#]*:[^/?#]*|[^/?#:\[]*:(?!\d*/|:)[^?#]*)@")
"""The second way: keys of S3 may have a slash; what follows a host and a colon is a port."""
_WEB_USER = re.compile(r"\s*https?://[^/?#]+@", re.IGNORECASE)
"""Without a password too: what stands there is a token."""
_PASSWORD = re.compile(r"(?<=://)(?:[^/@\s]+|[^/:@\s\[]*:(?!\d*/|:)[^@\s?#]*)(?=@)")
_SCHEME = "://"
CURE = (
    "give credentials by the environment (for S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
    "AWS_ENDPOINT_URL for the address), and the URL without them, such as s3://bucket/prefix"
)


def has_secret(text: str) -> bool:
    """Whether a text is a URL with `user:secret@`, or with a parameter that is a key, a token or a signature."""
    urls = [part for part in text.split("::") if _SCHEME in part]
    parts = [url.partition(_SCHEME)[2] for url in urls]
    return any(_USER.search(part) or _QUERY.search(unquote(part)) for part in parts) or any(
        _WEB_USER.match(url) for url in urls
    )


def hide_secrets(text: str, instead: str) -> str:
    """The text with what stands before the `@` of URLs, and parameters that are keys, tokens or signatures, replaced."""
    return _QUERY.sub(rf"\1={instead}", _PASSWORD.sub(instead, text))


def refuse_secrets(value: Any, what: str) -> None:
    """Refuse texts anywhere in plain values or models that are URLs with secrets; no message has the text.

    Raises:
        CredentialsError: with the path to the text and the cure.
    """
    for path, text in _texts(value, what):
        if has_secret(text):
            raise CredentialsError(
                f"{path}: found a URL with credentials, which would be stored with the results; {CURE}"
            )


def refuse_secret_options(options: Any, what: str) -> None:
    """Refuse file system options that are credentials, at any depth.

    Raises:
        CredentialsError: with the option's name and the cure.
    """
    if not hasattr(options, "items"):
        return
    for name, value in options.items():
        if _OPTION.fullmatch(str(name)):
            raise CredentialsError(f"{what}: found the option {name!r}, expected no credentials; {CURE}")
        refuse_secret_options(value, what)


def _texts(value: Any, path: str, above: frozenset[int] = frozenset()) -> Iterator[tuple[str, str]]:
    """Path and text of every text in a value, keys too; a list or mapping that lies in itself is entered once."""
    if isinstance(value, str):
        yield path, value
    if isinstance(value, str) or id(value) in above:
        return
    above |= {id(value)}
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _texts(item, f"{path}.{number}", above)
        return
    items = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    yield from ((f"{path}, a key", name) for name in items if isinstance(name, str))
    for name, item in items.items():
        yield from _texts(item, f"{path}.{name}", above)

"""What happened, for the log: one named event with facts, and what it happened in (run, capture, unit) without being told each time.

Events go through stdlib loggers; `tasks.log` writes them as lines of JSON. Where nobody listens they cost nothing, and say nothing. No
secret gets in: values of the environment that are called so, and secrets in URLs, are taken out.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from schemas.urls import hide_secrets

SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_KEY|ACCESS_KEY", re.IGNORECASE)
"""Names of variables whose values are kept out."""
SHORTEST_SECRET = 6
HIDDEN = "***"

_surroundings: ContextVar[Mapping[str, Any]] = ContextVar("surroundings")


def tell(logger: logging.Logger, event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event such as `unit.done` with what is known of it, and what it happened within."""
    if not (logger.isEnabledFor(level) and logger.hasHandlers()):
        return
    known = {name: _clean(value) for name, value in {**surroundings(), **facts}.items()}
    words = " ".join([event, *(f"{name}={_short(value)}" for name, value in known.items())])
    logger.log(level, "%s", words, extra={"event": event, "facts": known})


@contextmanager
def within(**facts: Any) -> Iterator[None]:
    """Events of this thread have these facts too."""
    token = _surroundings.set({**surroundings(), **facts})
    try:
        yield
    finally:
        _surroundings.reset(token)


def surroundings() -> Mapping[str, Any]:
    """What this thread is in; to be handed to `adopt` in threads that it starts."""
    return _surroundings.get({})


def adopt(facts: Mapping[str, Any]) -> None:
    """Be in what another thread is in."""
    _surroundings.set(facts)


def without_secrets(text: str) -> str:
    """The text with values of secret variables, and secrets in URLs, replaced."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET.search(name):
            text = text.replace(value, HIDDEN)
    return hide_secrets(text, HIDDEN)


def _clean(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Functions of the user, by import path."""

import importlib
from collections.abc import Callable
from typing import Any

from schemas.errors import SubspanError


def imported(path: str, what: str, refusal: type[SubspanError]) -> Callable[..., Any]:
    """What `module.path:name` names.

    Args:
        path: as a run file says it.
        what: it is for, in the message.
        refusal: the error raised.

    Raises:
        SubspanError: of the given kind, if it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module runs any code when it is imported
        raise refusal(
            f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}; it must be importable where the workers run "
            "(installed, or on PYTHONPATH)"
        ) from error
    return found


def source_file(path: str) -> str | None:
    """The file that defines what `module.path:name` names; None where there is none."""
    file: str | None = getattr(importlib.import_module(path.partition(":")[0]), "__file__", None)
    return file

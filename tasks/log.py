"""The log: one JSON object per line, on stderr or at the end of a file, from every process of a run.

`SUBSPAN_LOG` says where: the path of a file, or `-` for stderr (stdout is for answers). Workers that a run starts inherit it; for others it
is set where they are started. Lines have `time` (UTC), `level`, `logger`, `event`, `process` (host:pid), and facts such as `run`,
`capture`, `unit`, `seconds`, `bytes`: `jq 'select(.event == "unit.done") | .seconds' FILE`.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from schemas.errors import SpecError
from tasks.fingerprint import worker_name
from tasks.store.events import without_secrets

VARIABLE = "SUBSPAN_LOG"
OURS = ("tasks", "pipelines")
"""Loggers that everything of the project hangs on."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "message"),
            "process": worker_name(),
            **getattr(record, "facts", {}),
        }
        if "facts" not in record.__dict__:
            line["message"] = without_secrets(record.getMessage())
        if record.exc_info:
            line["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, default=str, ensure_ascii=False)


def begin_log() -> None:
    """Write this process's log where SUBSPAN_LOG says, if it says so; asked again, nothing happens.

    Raises:
        SpecError: if the file cannot be opened.
    """
    target = os.environ.get(VARIABLE, "")
    if target:
        _begin(target)


@lru_cache(maxsize=1)
def _begin(target: str) -> None:
    handler = logging.StreamHandler(sys.stderr) if target == "-" else _file(target)
    handler.setFormatter(JsonLines())
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)


class LogFile(logging.FileHandler):
    """Says once that it cannot be written, such as on a full disk; the run goes on."""

    silent = False

    def handleError(self, record: logging.LogRecord) -> None:
        """What it says of a line that was not written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.silent:
            self.silent = True
            sys.stderr.write(
                f"{VARIABLE}: {self.baseFilename} cannot be written ({error.strerror}); lines are missing from here on\n"
            )


def _file(path: str) -> logging.Handler:
    """Appends: lines are short, so that those of several processes do not mix."""
    if Path(path).is_fifo():
        raise SpecError(
            f"{VARIABLE} is {path!r}, a pipe, which would wait for its reader: give a file, or - for stderr"
        )
    try:
        return LogFile(path, encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"{VARIABLE} is {path!r}, which cannot be written ({error.strerror}): give a file in a folder that exists, or - for stderr"
        ) from error

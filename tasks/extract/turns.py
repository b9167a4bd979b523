"""Who may run a forward: one thread alone, or several at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TakeTurns(BaseException):
    """A forward beside others cannot stand; no `except Exception` on the way catches it. Do the unit again, alone."""


class Turns:
    """A lock that one thread holds alone, or any number together."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._alone = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else is inside."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and self._together == 0)
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Nobody is inside alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()


FORWARDS = Turns()
"""Of this process: generators belong to the process, hooks and training flags to a network."""

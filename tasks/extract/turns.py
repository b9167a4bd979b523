"""Who may run a forward: one thread alone, or several at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TakeTurns(BaseException):
    """A forward beside others cannot stand; no `except Exception` on the way catches it. Do the unit again, alone."""


class Turns:
    """A lock that one thread holds alone, or any number together. Who holds it alone may take it again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._owner: int | None = None
        self._waiting = 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else is inside. Who waits for this comes before all who come later."""
        if self._owner == threading.get_ident():
            yield
            return
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._owner is None and self._together == 0)
                self._owner = threading.get_ident()
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._owner = None
                self._changed.notify_all()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Nobody else is inside alone. Not to be nested in itself."""
        if self._owner == threading.get_ident():
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._owner is None and not self._waiting)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()


FORWARDS = Turns()
"""Of this process: generators belong to the process, hooks and training flags to a network."""

"""Bytes that this process has read from stores and written to them, in all its threads."""

import threading
from typing import NamedTuple


class Traffic(NamedTuple):
    """Bytes since the process began."""

    read: int = 0
    written: int = 0

    def since(self, before: "Traffic") -> "Traffic":
        """What came after."""
        return Traffic(self.read - before.read, self.written - before.written)


_lock = threading.Lock()
_total = Traffic()


def count(read: int = 0, written: int = 0) -> None:
    """So many bytes more."""
    global _total
    with _lock:
        _total = Traffic(_total.read + read, _total.written + written)


def traffic() -> Traffic:
    """So many by now."""
    return _total

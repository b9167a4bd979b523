"""A wall clock that a file shifts: on PYTHONPATH of a process, `time.time` is off by the seconds that it holds.

`datetime.now` stays: compiled packages fail with another `datetime`, and ours only tells times by it.
"""

import os
import time

_FILE = os.environ.get("CHAOS_CLOCK", "")
_real, _real_ns = time.time, time.time_ns


def _shift() -> float:
    try:
        with open(_FILE) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0


if _FILE:
    time.time = lambda: _real() + _shift()
    time.time_ns = lambda: _real_ns() + int(_shift() * 1e9)

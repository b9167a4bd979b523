"""Numbers in words: as many digits as their intervals support."""

import math

from tasks.figures import percent, short

Interval = tuple[float, float]

MOST_DIGITS = 4
"""Significant ones, whatever the interval."""


def whole_or_short(value: float) -> str:
    """A count as it is, any other number short."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e9 else short(value)


def decimals(value: float, interval: Interval) -> int | None:
    """Decimals that the interval supports: two digits of half its length, one where these would be 36 or more.

    None where the number is too small or large for them.
    """
    half = (interval[1] - interval[0]) / 2
    size = max(abs(value), abs(interval[0]), abs(interval[1]))
    if not (0 < half < math.inf) or not 1e-3 <= size < 1e6:
        return None
    power = math.floor(math.log10(half))
    wanted = (1 if half < 3.55 * 10.0**power else 0) - power
    return max(0, min(wanted, MOST_DIGITS - 1 - math.floor(math.log10(size))))


def written(value: float, interval: Interval | None = None, share: bool = False) -> str:
    """A number, in per cent for a share."""
    places = _places(value, interval, share)
    if places is None:
        return f"{100 * value:.1f} %" if share else whole_or_short(value)
    return f"{100 * value:.{places}f} %" if share else f"{value:,.{places}f}"


def bracket(value: float, interval: Interval, share: bool = False) -> str:
    """`[low, high]` with the digits of its number; per cent for a share."""
    places = _places(value, interval, share)
    factor = 100 if share else 1
    if places is None:
        ends = [f"{100 * end:.1f}" if share else short(end) for end in interval]
    else:
        ends = [f"{factor * end:,.{places}f}" for end in interval]
    return f"[{ends[0]}, {ends[1]}]"


def told(value: float, interval: Interval | None = None, share: bool = False) -> str:
    """A number with its interval, for a sentence."""
    if interval is None:
        return percent(value) if share else short(value)
    return f"{written(value, interval, share)} {bracket(value, interval, share)}"


def disjoint(a: Interval, b: Interval) -> bool:
    """Whether no number lies in both."""
    return a[1] < b[0] or b[1] < a[0]


def _places(value: float, interval: Interval | None, share: bool) -> int | None:
    if interval is None:
        return None
    factor = 100 if share else 1
    return decimals(factor * value, (factor * interval[0], factor * interval[1]))

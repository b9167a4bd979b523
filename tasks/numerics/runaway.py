"""Tells when a series of numbers leaves the way it went: a one-sided cumulative sum of what exceeds its own recent past.

A value x is set against the median m and the spread s = 1.4826 MAD of the values before it: z = (x - m) / s, cut off at `most`. The sum is
g = max(0, g + z - allowance), and an alarm begins when g exceeds `limit`. It ends when g is 0 again, so that one change is one alarm.
Since one value adds `most` - `allowance` at most, limit / (most - allowance) values in a row must exceed, and no single outlier alarms.
The past moves with the series: what changes within a window by less than its spread is never told.

Page, Biometrika 41 (1954) 100: the sum. Rousseeuw, Croux, JASA 88 (1993) 1273: the spread.
"""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

CONSISTENT = 1.4826
"""Of a normal law's median absolute deviation to its standard deviation."""


class Rule(NamedTuple):
    """When an alarm begins."""

    window: int = 50
    """Values of the past that a value is set against."""
    warmup: int = 20
    """Values before the first that is judged."""
    allowance: float = 1.5
    """Spreads above the median that a value may lie without adding to the sum."""
    most: float = 4.0
    """Spreads above the median that count."""
    limit: float = 8.0
    """Which the sum must exceed."""
    floor: float = 0.3
    """Least spread; in a series of logarithms 0.3 is a third of the value."""


class Watch(NamedTuple):
    """A series so far."""

    recent: tuple[float, ...] = ()
    """Its last values, `window` at most."""
    excess: float = 0.0
    """The sum g."""
    raised: bool = False
    """Whether an alarm has begun and not ended."""
    level: float = math.nan
    """Above which the last value added to the sum; NaN while none is judged."""


def taken(watch: Watch, value: float, rule: Rule) -> tuple[Watch, bool]:
    """The series with one more value, and whether an alarm begins with it.

    Args:
        watch: the series before.
        value: NaN and infinity change nothing.
        rule: when an alarm begins.

    Cost: two sorts of `window` numbers.
    """
    if not math.isfinite(value):
        return watch, False
    excess, level = watch.excess, math.nan
    if len(watch.recent) >= rule.warmup:
        middle = statistics.median(watch.recent)
        spread = max(CONSISTENT * statistics.median(abs(past - middle) for past in watch.recent), rule.floor)
        excess = max(0.0, excess + min((value - middle) / spread, rule.most) - rule.allowance)
        level = middle + rule.allowance * spread
    raised = excess > rule.limit or (watch.raised and excess > 0)
    recent = (*watch.recent, value)[-rule.window :]
    return Watch(recent, excess, raised, level), raised and not watch.raised


def excesses(values: Iterable[float], rule: Rule) -> list[float]:
    """The sum after each value of a series."""
    watch, found = Watch(), []
    for value in values:
        watch, _ = taken(watch, value, rule)
        found.append(watch.excess)
    return found

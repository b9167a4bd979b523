"""One rule for what is measured of a training, step by step: what the live monitor tells at once, and a stage of a recording afterwards.

Numbers of a step have names: `loss`; `gradient_norm`; `not_finite`, a share; and `alignment.<layer>`, `rank.<layer>`, and
`gradient_norm.<parameter>`, as a stage has it of recorded gradients. Any may be missing or
NaN, which says that they were not measured; but a loss that is infinite is not finite, nor, where no share is known, one that was a number
and is none.
"""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from schemas.training import Grade, Limits, Monitor, TrainingEvent
from tasks.numerics.runaway import Rule, Watch, taken

LOSS: Monitor = "loss"
NORM: Monitor = "gradient_norm"
NOT_FINITE: Monitor = "not_finite"
ALIGNMENT: Monitor = "alignment"
RANK: Monitor = "rank"
OF_LAYERS = (NORM, ALIGNMENT, RANK)
GRADES: dict[Monitor, Grade] = {
    NOT_FINITE: "alarm",
    LOSS: "alarm",
    NORM: "alarm",
    ALIGNMENT: "notice",
    RANK: "notice",
}
SHARE_FLOOR = 0.05
"""Least spread of an alignment."""
GIVEN_BACK = 0.5
"""Share of the loss of the beginning that the loss must have reached again for an alarm of the loss or the gradient's norm, where losses
are known and positive: below it trainings at large rates waver and recover."""

RISEN = 1.5
"""Times its least so far that the loss must be as well: gradients may grow while the loss still falls."""


class Series(NamedTuple):
    """What is measured, and where."""

    monitor: Monitor
    layer: str | None = None


class Reading(NamedTuple):
    """A series at a step."""

    series: Series
    value: float
    """Measured: a loss over its running minimum, a norm, a share or a rank; NaN for none."""
    threshold: float
    """Beyond which it adds to the excess (below it, for a rank); NaN while none is known."""
    excess: float
    raised: bool
    """Whether an event has begun and not ended."""
    begins: bool


class TrainingWatch:
    """All series of a training so far."""

    def __init__(self, limits: Limits) -> None:
        """Begin with nothing known.

        Args:
            limits: when something is told.
        """
        self._limits = limits
        self._rule = Rule(limits.window, min(limits.warmup, limits.window), limit=limits.limit)
        self._watches: dict[Series, Watch] = {}
        self._first: list[float] = []
        self._last = self._least = math.nan
        self._lost = False

    def take(self, step: int, numbers: Mapping[str, float]) -> tuple[list[Reading], list[TrainingEvent]]:
        """What a step's numbers say, and what begins with them.

        Args:
            step: its number.
            numbers: by the names of this module; others are passed over.
        """
        readings = [self._not_finite(numbers)]
        readings += [self._read(series, float(numbers[name])) for name, series in series_of(numbers).items()]
        return readings, [_event(step, reading, self._limits) for reading in readings if reading.begins]

    def _not_finite(self, numbers: Mapping[str, float]) -> Reading:
        """At once, without a past."""
        loss, share = float(numbers.get(LOSS, math.nan)), float(numbers.get(NOT_FINITE, math.nan))
        alone = LOSS in numbers and math.isnan(share)  # a share would count a loss that is none
        gone = math.isinf(loss) or (alone and math.isnan(loss) and not math.isnan(self._least))
        raised = gone or share > 0
        begins, self._lost = raised and not self._lost, raised
        value = max(share, 0.0) if share >= 0 else (1.0 if gone else math.nan)
        return Reading(Series(NOT_FINITE), value, 0.0, float(raised), raised, begins)

    def _read(self, series: Series, number: float) -> Reading:
        watch, value = self._watches.get(series, Watch()), number
        if series.monitor == LOSS:
            value = self._over_least(number)
        judged = value if series.monitor == ALIGNMENT else _log(value)
        sign = -1.0 if series.monitor == RANK else 1.0
        rule = self._rule._replace(floor=SHARE_FLOOR) if series.monitor == ALIGNMENT else self._rule
        after, begins = taken(watch, sign * judged, rule)
        if begins and not self._counts(series, number):
            after, begins = after._replace(raised=False), False
        self._watches[series] = after
        if not math.isfinite(judged):
            return Reading(series, value, math.nan, after.excess, after.raised, False)
        threshold = after.level if series.monitor == ALIGNMENT else math.exp(sign * after.level)
        return Reading(series, value, threshold, after.excess, after.raised, begins)

    def _counts(self, series: Series, number: float) -> bool:
        """Whether what left its past is far enough to be told."""
        if series.monitor == ALIGNMENT:
            return number >= self._limits.aligned
        if series.monitor == RANK or not self._first or not self._least > 0:
            return True
        back = self._last >= GIVEN_BACK * statistics.median(self._first)
        return back and self._last >= RISEN * self._least

    def _over_least(self, loss: float) -> float:
        """A loss over the least before it; NaN for losses that are not positive, whose ratios say nothing."""
        if not math.isfinite(loss):
            return math.nan
        self._last = loss
        if len(self._first) < self._limits.warmup:
            self._first.append(loss)
        before = loss if math.isnan(self._least) else self._least
        self._least = min(before, loss)
        return loss / before if before > 0 and loss > 0 else math.nan


def series_of(names: Mapping[str, object]) -> dict[str, Series]:
    """Name to series of the names that are judged by their past, in order: whole training first, then layers as they come."""
    found: dict[str, Series] = {name: Series(name) for name in (LOSS, NORM) if name in names}
    layers: dict[str, Series] = {
        name: Series(monitor, name.removeprefix(f"{monitor}."))
        for monitor in OF_LAYERS
        for name in names
        if name.startswith(f"{monitor}.")
    }
    return {**found, **layers}


def _log(value: float) -> float:
    return math.log(value) if value > 0 and math.isfinite(value) else math.nan


def _event(step: int, reading: Reading, limits: Limits) -> TrainingEvent:
    series, finite = reading.series, math.isfinite(reading.value)
    known = math.isfinite(reading.threshold)
    return TrainingEvent(
        step=step,
        monitor=series.monitor,
        layer=series.layer,
        grade=GRADES[series.monitor],
        value=reading.value if finite else None,
        threshold=reading.threshold if known else None,
        reason=_reason(reading, limits),
    )


def _reason(reading: Reading, limits: Limits) -> str:
    what = {
        NOT_FINITE: "numbers that are not finite among the loss, gradients and inputs of layers",
        LOSS: f"the loss is {reading.value:.3g} times its least so far",
        NORM: f"the gradient's norm is {reading.value:.3g}",
        ALIGNMENT: f"{reading.value:.0%} of the rows lie on one side of the weight's leading direction",
        RANK: f"the effective rank of the layer's inputs is {reading.value:.3g}",
    }[reading.series.monitor]
    if reading.series.monitor == NOT_FINITE:
        return what
    side = "below" if reading.series.monitor == RANK else "above"
    return (
        f"{what}, {side} {reading.threshold:.3g} for so long, or by so much, that the excess over the last {limits.window} readings is "
        f"{reading.excess:.3g}, more than {limits.limit:g}"
    )

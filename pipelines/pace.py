"""How fast the units of a capture are or were made, from their receipts alone."""

from collections.abc import Collection
from datetime import datetime

from schemas.base import Frozen
from schemas.receipts import Receipt

RECENT = 32
"""Receipts, the last ones, from which the pace is told: earlier ones may lie before a pause."""


class Pace(Frozen):
    """Sums and rates of the units that are done. Rates are of one worker, but for those of all together."""

    workers: int
    """That made the last units."""
    last: str
    """UTC time at which the last unit was done."""
    seconds: float
    """Of all units, end to end."""
    forward: float
    """Share of these in the network."""
    write: float
    """Seconds of writers, over these: beside the forwards."""
    wait: float
    """Share of these in which forwards waited for writers."""
    unit_seconds: float
    """Of a unit, on average."""
    slowest_unit: str
    slowest_seconds: float
    slowest_worker: str
    tokens_per_second: float
    written_per_second: float
    """Bytes."""
    units_per_second: float | None
    """Of all workers together, over the last units; None where these are too few to tell."""
    padding: float
    """Share of tokens that went through the network for nothing."""
    peak_bytes: int
    """Of the largest worker."""


def pace_of(receipts: Collection[Receipt]) -> Pace | None:
    """The pace; None where no unit is done."""
    if not receipts:
        return None
    seconds = sum(r.seconds for r in receipts) or 1e-9
    tokens, padded = sum(r.tokens for r in receipts), sum(r.padded_tokens for r in receipts)
    slowest = max(receipts, key=lambda r: r.seconds)
    recent = sorted(receipts, key=lambda r: r.finished)[-RECENT:]
    return Pace(
        workers=len({r.worker for r in recent}),
        last=recent[-1].finished,
        seconds=seconds,
        forward=sum(r.forward_seconds for r in receipts) / seconds,
        write=sum(r.write_seconds for r in receipts) / seconds,
        wait=sum(r.wait_seconds for r in receipts) / seconds,
        unit_seconds=seconds / len(receipts),
        slowest_unit=slowest.unit.name,
        slowest_seconds=slowest.seconds,
        slowest_worker=slowest.worker,
        tokens_per_second=tokens / seconds,
        written_per_second=sum(r.written_bytes for r in receipts) / seconds,
        units_per_second=_together(recent),
        padding=1 - tokens / padded if padded else 0.0,
        peak_bytes=max(r.peak_bytes for r in receipts),
    )


def _together(recent: list[Receipt]) -> float | None:
    """Units per second between the first and the last; times are of whole seconds."""
    first, last = (datetime.fromisoformat(r.finished) for r in (recent[0], recent[-1]))
    seconds = (last - first).total_seconds()
    return (len(recent) - 1) / seconds if seconds > 0 else None

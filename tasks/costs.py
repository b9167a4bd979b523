"""What a run took, in a few numbers and lines: throughput, traffic, worker-hours, how much of them was work, and what they cost."""

from typing import NamedTuple

from schemas.outcome import RunOutcome

HOUR = 3600.0


class Costs(NamedTuple):
    """Totals of the steps of a run; what an earlier run finished is not in them."""

    rows: int
    tokens: int
    read_bytes: int
    written_bytes: int
    worker_seconds: float
    """Of all units and jobs."""
    worker_hours: float
    """Of workers that were there, idle or not: what is paid for. They are counted as units come back."""
    busy: float | None
    """Share of these in which units and jobs ran."""
    computing: float | None
    """Share of the units' seconds that is the network."""
    tokens_per_second: float | None
    """Over the seconds of the captures."""
    written_per_second: float | None
    """Bytes, the same."""
    price: float | None
    """At the price that the run file gives."""


def costs_of(outcome: RunOutcome) -> Costs | None:
    """The totals; None for a record of an older version, or where nothing was to do."""
    if not outcome.work:
        return None
    captures = [step for step in outcome.work if step.kind == "capture"]
    seconds = sum(step.seconds for step in captures)
    tokens, written = sum(s.tokens for s in captures), sum(s.written_bytes for s in captures)
    units = sum(step.worker_seconds for step in captures)
    work = sum(step.worker_seconds for step in outcome.work)
    paid = outcome.worker_seconds
    hours = (outcome.workers * outcome.seconds if paid is None else paid) / HOUR
    price = outcome.price_per_worker_hour
    return Costs(
        rows=sum(step.rows for step in captures),
        tokens=tokens,
        read_bytes=sum(step.read_bytes for step in outcome.work),
        written_bytes=sum(step.written_bytes for step in outcome.work),
        worker_seconds=work,
        worker_hours=hours,
        busy=_share(work, hours * HOUR),
        computing=_share(sum(step.forward_seconds for step in captures), units),
        tokens_per_second=_share(tokens, seconds),
        written_per_second=_share(written, seconds),
        price=None if price is None else price * hours,
    )


def cost_lines(outcome: RunOutcome) -> list[str]:
    """The totals as sentences; none where they are not known."""
    costs = costs_of(outcome)
    if costs is None:
        return []
    lines = []
    if costs.rows:
        rate = "" if costs.tokens_per_second is None else f" ({costs.tokens_per_second:,.0f} per second)"
        share = f"{_percent(costs.computing)} of the units' time in the network"
        lines.append(f"{costs.rows:,} rows from {costs.tokens:,} tokens or samples{rate}; {share}")
    lines.append(f"{costs.written_bytes / 1e6:,.1f} MB written, {costs.read_bytes / 1e6:,.1f} MB read")
    kind = "GPU" if outcome.device.startswith("cuda") else "CPU"
    workers = f"{outcome.workers} {kind} {'worker' if outcome.workers == 1 else 'workers'}"
    price = (
        "" if costs.price is None else f", {costs.price:,.4g} at {outcome.price_per_worker_hour:g} per hour"
    )
    lines.append(
        f"{workers}: {costs.worker_hours:.3g} worker-hours{price}, busy {_percent(costs.busy)} of them"
    )
    return lines


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"

"""How long the captures of a plan will take, and what that rests on: a trial, receipts of units, or the dry run. And what it
would take to keep ids alone and compute a capture again.
"""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from pipelines.plan import CapturePlan, Plan
from pipelines.preflight import Workers
from schemas.capture import CaptureSpec, ids_bytes
from schemas.errors import NotFoundError
from schemas.receipts import Receipt
from tasks.store.location import Location
from tasks.store.paths import CAPTURES, capture_path, receipts_path
from tasks.store.receipts import UNIT_FILE

MOST_CAPTURES = 50
"""Captures of a root that are looked at for a comparable one."""
MOST_RECEIPTS = 32
"""Receipts of a capture that are read for its speed."""


class Pace(NamedTuple):
    """How fast one worker does a capture."""

    seconds: float
    """For one token (or sample), over all row spaces."""
    basis: str
    """What that rests on, in words."""


class Estimate(NamedTuple):
    """When the captures of a plan will be done."""

    seconds: float
    workers: int
    basis: tuple[str, ...]
    """What it rests on, in words, each once."""


class Again(NamedTuple):
    """A capture beside its ids alone, from which it can be computed again."""

    capture: str
    """As the run file calls it."""
    partition: str | None
    id: str
    bytes: int
    """On disk, before compression."""
    ids_bytes: int | None
    """Of token ids and sample numbers, without the network; None where nothing computes it again."""
    seconds: float | None
    """Of one worker; None where nothing tells the pace."""
    basis: str | None
    """What the seconds rest on, in words."""


def recomputing(
    plan: Plan, device: str | None = None, trials: Mapping[str, Pace] | None = None
) -> tuple[Again, ...]:
    """What every capture of a plan takes on disk, and what keeping ids alone and computing it again would.

    The pace is found as for `estimate`. Reads a few receipts of every capture.

    Args:
        plan: the plan, of finished captures too.
        device: of the workers; None where nobody knows, and for finished captures, whose receipts tell.
        trials: capture name to the pace that a trial measured.
    """
    return tuple(_again(plan, capture, device, trials or {}) for capture in plan.captures)


def _again(plan: Plan, capture: CapturePlan, device: str | None, trials: Mapping[str, Pace]) -> Again:
    ids = ids_bytes(capture.spec, capture.n_tokens)
    pace = None if ids is None else _pace(plan, capture, None if capture.sealed else device, trials)
    seconds, basis = (None, None) if pace is None else (pace.seconds * capture.n_tokens, pace.basis)
    return Again(capture.name, capture.partition, capture.id, capture.bytes, ids, seconds, basis)


def estimate(plan: Plan, workers: Workers, trials: Mapping[str, Pace] | None = None) -> Estimate | None:
    """The time that is left for the captures of a plan, without its stages and report.

    The best of what is known counts: a trial, receipts of the capture itself, receipts of a capture of the same
    network and sites on the same kind of device, the dry run (on a CPU).

    Args:
        plan: the plan.
        workers: who will run it; one worker is assumed where only a scheduler knows.
        trials: capture name to the pace that a trial measured.

    Returns:
        None where nothing is to be captured, or nothing is known of one of the captures.
    """
    todo = [capture for capture in plan.captures if not capture.sealed]
    paces = [_pace(plan, capture, workers.device, trials or {}) for capture in todo]
    known = [pace for pace in paces if pace is not None]
    if not todo or len(known) < len(todo):
        return None
    n = workers.n or 1
    seconds = sum(_left(c) * p.seconds / min(n, _units_left(c)) for c, p in zip(todo, known, strict=True))
    return Estimate(seconds, n, tuple(dict.fromkeys(pace.basis for pace in known)))


def _units_left(capture: CapturePlan) -> int:
    return max(1, capture.n_units - capture.units_done)


def _left(capture: CapturePlan) -> float:
    """Tokens (or samples) whose units are not done."""
    return capture.n_tokens * (capture.n_units - capture.units_done) / max(1, capture.n_units)


def _pace(plan: Plan, capture: CapturePlan, device: str | None, trials: Mapping[str, Pace]) -> Pace | None:
    if capture.name in trials:
        return trials[capture.name]
    return _receipts_pace(Location(plan.run.root), capture, device) or _dry_pace(capture, device)


def _dry_pace(capture: CapturePlan, device: str | None) -> Pace | None:
    if capture.dry_run_seconds is None or device != "cpu":
        return None
    n_spaces = len(capture.spec.layout.spaces)  # each costs a forward
    return Pace(capture.dry_run_seconds * n_spaces, "the dry run of a few samples, forwards alone")


def _receipts_pace(root: Location, capture: CapturePlan, device: str | None) -> Pace | None:
    """The pace of the units that are done, of this capture or else of one like it."""
    for other in [capture.id, *_alike(root, capture)]:
        receipts = [r for r in _some_receipts(root, other) if device in (None, _kind(r))]
        tokens = sum(receipt.tokens for receipt in receipts)
        if tokens:
            seconds = sum(receipt.seconds for receipt in receipts)
            whose = "this capture" if other == capture.id else f"capture {other}, the same network and sites"
            basis = f"{len(receipts)} finished units of {whose}, {tokens / seconds:,.0f} tokens/s a worker"
            return Pace(seconds / tokens * len(capture.spec.layout.spaces), basis)
    return None


def _alike(root: Location, capture: CapturePlan) -> Iterator[str]:
    """Other captures of the root that send the same network to the same sites."""
    folders = [name for name in root.ls(CAPTURES) if name.endswith(".zarr")]
    for folder in folders[:MOST_CAPTURES]:
        other = folder.removesuffix(".zarr")
        spec = None if other == capture.id else _read_spec(root, other)
        if spec and (spec.weights, spec.layout.sites) == (capture.spec.weights, capture.spec.layout.sites):
            yield other


def _read_spec(root: Location, capture: str) -> CaptureSpec | None:
    """None where a folder holds something else."""
    try:
        record = json.loads(root.read(f"{capture_path(capture)}/zarr.json"))
        return CaptureSpec.model_validate(record["attributes"]["spec"])
    except (NotFoundError, ValidationError, ValueError, KeyError, TypeError):
        return None


def _some_receipts(root: Location, capture: str) -> list[Receipt]:
    """The receipts of the last units: those of the first have start-up in them."""
    folder = receipts_path(capture)
    names = [name for name in root.ls(folder) if UNIT_FILE.fullmatch(name)]
    found = (Receipt.read(root.read(f"{folder}/{name}")) for name in names[-MOST_RECEIPTS:])
    return [receipt for receipt in found if receipt is not None]


def _kind(receipt: Receipt) -> str:
    return "cpu" if receipt.fingerprint.device == "cpu" else "cuda"

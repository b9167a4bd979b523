"""A sealed capture computed again from what names it (ids and network), beside what lies in the store.

Units run as they ran for the store, into a scratch folder that is removed; nothing is written below the root. A capture that gives the
same bits can be kept as ids alone; one that does not says by how much, since other versions, processors or thread counts may differ in
the last bits.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import zarr

from schemas.capture import CaptureSpec, ids_bytes
from schemas.errors import DataError, ModelError, SpecError
from schemas.layout import UnitRef
from schemas.receipts import Receipt
from tasks.extract.models import network
from tasks.extract.weights import tokenizer_digest, weights_digest
from tasks.fingerprint import differences
from tasks.store.arrays import create_capture
from tasks.store.location import Location
from tasks.store.manifest import read_manifest
from tasks.store.paths import ArrayPlan, all_units, capture_path, space_arrays, unit_files
from tasks.store.receipts import receipt_of
from tasks.store.sample_table import read_samples
from tasks.store.sealed import open_group
from tasks.store.zarrstore import LocationStore
from tasks.unit import UnitJob, run_unit

OnUnit = Callable[[int, int], None]
"""Called with units done and units in all."""


class Compared(NamedTuple):
    """One array, computed again and as stored."""

    array: str
    """Below the capture's folder."""
    values: int
    differing: int
    """Values whose bits are not the same."""
    unmatched: int
    """Of these, finite on one side alone: they are in no error."""
    largest_absolute: float
    """Largest |again - stored|."""
    largest_relative: float
    """Largest |again - stored| / |stored|, where the stored value is not 0."""


class Recomputed(NamedTuple):
    """What computing a capture again gave and took."""

    capture: str
    exact: bool
    """Whether every value that was compared has the stored bits."""
    units: int
    """Computed again."""
    n_units: int
    rows: int
    n_rows: int
    """Of all units and row spaces."""
    arrays: tuple[Compared, ...]
    fingerprint: str
    """How versions, device or threads differ from those that made the units; empty where they are the same."""
    stored_bytes: int
    """Of these units on disk."""
    n_stored_bytes: int
    """Of all units."""
    ids_bytes: int | None
    """What keeping ids alone would take, of all units; None for recorded steps."""
    read_seconds: float
    """Of reading these units' arrays from the store."""
    seconds: float
    """Of computing these units, with writing them to scratch; loading the network is left out."""


def recompute(
    root: Location,
    capture: str,
    units: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
) -> Recomputed:
    """Compute units of a sealed capture again and compare every value with the stored one.

    Costs what the units cost when they were captured, and the disk of one unit at a time; arrays are compared a shard at a time.

    Args:
        root: where captures lie; only read.
        capture: id of a sealed capture.
        units: how many, drawn with `seed`; None for all.
        seed: of the draw.
        device: `cpu` or `cuda`, where they run.
        on_unit: told after each.

    Raises:
        NotFoundError, DamageError: if the capture is not sealed, or a file is not readable.
        SpecError: if it keeps states and no rows.
        ModelError, DataError: if weights, tokenizer, data or loss are not those that were captured; with both digests.
        UnitError: if a unit fails as a whole.
    """
    stored = open_group(root, capture)
    spec = CaptureSpec.model_validate(stored.attrs["spec"])
    _check(capture, spec)
    network(
        spec.request.model, device, spec.request.precision.threads, spec.weights
    )  # loaded before any unit is timed
    chosen = _choose(all_units(spec), units, seed)
    sizes = {path: digest.bytes for path, digest in read_manifest(root, capture).files.items()}
    compared: dict[str, Compared] = {}
    receipts, read_seconds, found = [], 0.0, ""
    samples = read_samples(root, capture)
    with tempfile.TemporaryDirectory(prefix="subspan-recompute-") as folder:
        scratch = Location(folder)
        create_capture(scratch, spec, samples, {})
        again = zarr.open_group(
            LocationStore(scratch.child(capture_path(capture)), read_only=True), mode="r", zarr_format=3
        )
        for unit in chosen:
            job = UnitJob(root=scratch.url, capture=capture, unit=unit, device=device)
            receipts.append(run_unit(job).receipt)
            read_seconds += _compare_unit(spec, unit, stored, again, compared)
            found = found or _fingerprint(root, receipts[-1])
            for path in receipts[-1].files:
                scratch.delete(f"{capture_path(capture)}/{path}")
            if on_unit is not None:
                on_unit(len(receipts), len(chosen))
    return Recomputed(
        capture=capture,
        exact=not any(one.differing for one in compared.values()),
        units=len(chosen),
        n_units=len(all_units(spec)),
        rows=sum(receipt.rows for receipt in receipts),
        n_rows=sum(space.n_rows for space in spec.layout.spaces),
        arrays=tuple(compared.values()),
        fingerprint=found,
        stored_bytes=_bytes(spec, chosen, sizes),
        n_stored_bytes=_bytes(spec, all_units(spec), sizes),
        ids_bytes=ids_bytes(spec, int(samples.lengths.sum())),
        read_seconds=read_seconds,
        seconds=sum(receipt.seconds for receipt in receipts),
    )


def _check(capture: str, spec: CaptureSpec) -> None:
    """Refuse what cannot give the stored rows; data and loss are checked where they are opened."""
    model = spec.request.model
    if spec.request.keep == "states":
        raise SpecError(
            f"capture {capture} keeps states and no rows, so there is nothing to compare with; run it anew below another root"
        )
    weights = weights_digest(model)
    if weights is not None and weights != spec.weights:
        raise ModelError(
            f"capture {capture} was made of a network of digest {spec.weights[:12]}, its files now have {weights[:12]}: they changed; "
            "restore them, or run again: another network is another capture"
        )
    tokenizer = None if spec.tokenizer is None else tokenizer_digest(model)
    if tokenizer != spec.tokenizer:
        raise DataError(
            f"capture {capture} was made with a tokenizer of digest {str(spec.tokenizer)[:12]}, its files now have {str(tokenizer)[:12]}: "
            "they changed; restore them, or run again: other tokens are another capture"
        )


def _choose(every: Sequence[UnitRef], n: int | None, seed: int) -> list[UnitRef]:
    if n is None or n >= len(every):
        return list(every)
    return [every[i] for i in sorted(np.random.default_rng(seed).choice(len(every), n, replace=False))]


def _bytes(spec: CaptureSpec, units: Iterable[UnitRef], sizes: dict[str, int]) -> int:
    return sum(sizes[path] for unit in units for path in unit_files(spec, unit))


def _fingerprint(root: Location, receipt: Receipt) -> str:
    made = receipt_of(root, receipt.capture, receipt.unit)
    return "" if made is None else differences(made.fingerprint, receipt.fingerprint)


def _compare_unit(
    spec: CaptureSpec, unit: UnitRef, stored: zarr.Group, again: zarr.Group, into: dict[str, Compared]
) -> float:
    """Compare every array of a unit; returns the seconds of reading the store."""
    space, seconds = spec.layout.space(unit.space), 0.0
    for plan in space_arrays(spec, space):
        for shard in space.unit_shard_range(unit.index):
            begun = time.perf_counter()
            old = _rows(stored, plan, shard)
            seconds += time.perf_counter() - begun
            found = _compare(plan.path, old, _rows(again, plan, shard))
            into[plan.path] = _merged(into[plan.path], found) if plan.path in into else found
    return seconds


def _rows(group: zarr.Group, plan: ArrayPlan, shard: int) -> np.ndarray:
    array: Any = group[plan.path]
    return np.ascontiguousarray(array[slice(*plan.space.shard_bounds(shard))])


def _compare(array: str, stored: np.ndarray, again: np.ndarray) -> Compared:
    bits = f"u{stored.dtype.itemsize}"
    other = stored.view(bits) != again.view(bits)
    was, now = stored[other].astype(np.float64), again[other].astype(np.float64)
    finite = np.isfinite(was) & np.isfinite(now)
    error = np.abs(now[finite] - was[finite])
    size = np.abs(was[finite])
    relative = error[size > 0] / size[size > 0]
    return Compared(
        array,
        stored.size,
        len(was),
        int((np.isfinite(was) != np.isfinite(now)).sum()),
        float(error.max(initial=0)),
        float(relative.max(initial=0)),
    )


def _merged(a: Compared, b: Compared) -> Compared:
    return Compared(
        a.array,
        a.values + b.values,
        a.differing + b.differing,
        a.unmatched + b.unmatched,
        max(a.largest_absolute, b.largest_absolute),
        max(a.largest_relative, b.largest_relative),
    )

"""Sealing a capture: every unit proven, every file in its size, then the manifest, last."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from schemas.base import canonical_json
from schemas.capture import CaptureSpec
from schemas.errors import DamageError, NotFoundError, StoreError
from schemas.layout import UnitRef
from schemas.receipts import Failure, FileDigest, Manifest, Receipt
from tasks.store.location import Location
from tasks.store.manifest import is_sealed, list_captures, read_manifest
from tasks.store.paths import (
    STATES,
    all_units,
    capture_path,
    created_path,
    manifest_path,
    receipts_path,
    unit_files,
)
from tasks.store.receipts import (
    CreatedRecord,
    count_receipts,
    drop_receipt,
    read_receipts,
    receipt_of,
    write_receipt,
)
from tasks.store.verify import Damage, digest_or_none, verify


def seal(root: Location, spec: CaptureSpec) -> Manifest:
    """Seal a capture whose units are all done; sealing again returns the manifest that is there.

    A unit whose files are missing or have another size loses its receipt, so that the next run does it again.
    Costs one listing, one read per receipt, and the sizes of all shards; no shard is read.

    Raises:
        StoreError: if units are not done, or their files are gone; the message names them.
        DamageError: if the metadata or sample table changed since the capture was created.
    """
    if is_sealed(root, spec.id):
        return read_manifest(root, spec.id)
    lost = drop_incomplete(root, spec)
    receipts = read_receipts(root, spec.id)
    _require(spec, receipts, {unit.name for unit in lost})
    failures = _failures(receipts.values())
    files = _metadata(root, spec) | _ok(root, spec, failures)
    for receipt in receipts.values():
        files |= {path: digest for path, digest in receipt.files.items() if _sealed(spec, path)}
    for folder in (capture_path(spec.id), receipts_path(spec.id)):
        root.sweep(folder)
    manifest = Manifest(
        schema_version=spec.schema_version,
        capture=spec.id,
        files=dict(sorted(files.items())),
        receipts=_receipt_digests(root, spec.id),
        failures=failures,
        truncated=_truncated(root, spec),
        saturated=_saturated(receipts.values()),
        rows={space.name: space.n_rows for space in spec.layout.spaces},
        sealed=datetime.now(UTC).isoformat(timespec="seconds"),
    ).with_digest()
    root.create(manifest_path(spec.id), canonical_json(manifest))
    return read_manifest(root, spec.id)


def _sealed(spec: CaptureSpec, path: str) -> bool:
    """Fused states belong to the seal only where they are all there is; else rows can give them again."""
    return spec.request.keep == "states" or not path.startswith(STATES)


def drop_incomplete(root: Location, spec: CaptureSpec) -> list[UnitRef]:
    """Take back the receipts of units whose files are missing or have another size, so that they run again."""
    receipts = read_receipts(root, spec.id)
    sizes = root.walk(capture_path(spec.id)) if receipts else {}
    known = [(unit, receipts[unit.name]) for unit in all_units(spec) if unit.name in receipts]
    lost = [unit for unit, receipt in known if not _complete(root, spec, unit, receipt, sizes)]
    for unit in lost:
        drop_receipt(root, spec.id, unit)
    return lost


def _require(spec: CaptureSpec, receipts: dict[str, Receipt], lost: set[str]) -> None:
    """Refuse unless each unit has a receipt."""
    names = [unit.name for unit in all_units(spec) if unit.name not in receipts]
    open_units = [f"{name} (its files are missing or short)" if name in lost else name for name in names]
    if open_units:
        raise StoreError(
            f"capture {spec.id} cannot be sealed: {len(open_units)} of {len(all_units(spec))} units are "
            f"not done ({', '.join(open_units[:5])}); run it again, finished units are kept"
        )


def _complete(
    root: Location, spec: CaptureSpec, unit: UnitRef, receipt: Receipt, sizes: dict[str, int]
) -> bool:
    if not receipt.files.keys() >= set(unit_files(spec, unit)):
        return False
    kept = {path: digest for path, digest in receipt.files.items() if _sealed(spec, path)}
    return all(
        (root.size(path) if path.startswith(STATES) else sizes.get(path)) == digest.bytes
        for path, digest in kept.items()
    )


def _failures(receipts: Iterable[Receipt]) -> tuple[Failure, ...]:
    """Failed samples in order; one that straddles units is named once."""
    by_sample: dict[int, Failure] = {}
    for receipt in receipts:
        for failure in receipt.failures:
            by_sample.setdefault(failure.sample, failure)
    return tuple(by_sample[sample] for sample in sorted(by_sample))


def _metadata(root: Location, spec: CaptureSpec) -> dict[str, FileDigest]:
    """Digests of what `create_capture` wrote, checked against what is there."""
    try:
        created = CreatedRecord.read(root.read(created_path(spec.id)))
    except NotFoundError:
        created = None
    if created is None:
        raise DamageError(f"capture {spec.id} has no record of its creation; run it again to create it")
    place = root.child(capture_path(spec.id))
    paths = list(created.files)
    for path, found in zip(paths, place.each(partial(digest_or_none, place), paths), strict=True):
        if found != created.files[path]:
            raise DamageError(f"{place.url}/{path} changed since it was created; run again to write it anew")
    return created.files


def _ok(root: Location, spec: CaptureSpec, failures: tuple[Failure, ...]) -> dict[str, FileDigest]:
    """Write `samples/ok`: False for samples that failed."""
    import numpy as np
    import zarr

    from tasks.store.zarrstore import ShardStore

    ok = np.ones(spec.layout.n_samples, dtype=bool)
    ok[[failure.sample for failure in failures]] = False
    store = ShardStore(root.child(capture_path(spec.id)))
    if ok.size:
        column: Any = zarr.open_array(store, path="samples/ok", mode="r+", zarr_format=3)
        column.with_config({"write_empty_chunks": True})[:] = ok  # open_array takes a config and ignores it
    store.base.sync(store.written)
    return store.written


def _truncated(root: Location, spec: CaptureSpec) -> int:
    """How many samples of the table were cut; receipts would count one that straddles units twice."""
    import numpy as np
    import zarr

    from tasks.store.zarrstore import LocationStore

    store = LocationStore(root.child(capture_path(spec.id)), read_only=True)
    column: Any = zarr.open_array(store, path="samples/truncated", mode="r", zarr_format=3)
    return int(np.count_nonzero(column[:]))


def _saturated(receipts: Iterable[Receipt]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt.saturated)
    return dict(sorted(total.items()))


def _receipt_digests(root: Location, capture_id: str) -> dict[str, FileDigest]:
    folder = receipts_path(capture_id)
    names = root.ls(folder)
    return dict(zip(names, root.each(lambda name: root.digest(f"{folder}/{name}"), names), strict=True))


__all__ = [
    "Damage",
    "count_receipts",
    "is_sealed",
    "list_captures",
    "read_manifest",
    "read_receipts",
    "receipt_of",
    "seal",
    "verify",
    "write_receipt",
]

"""One capture from its spec to its seal, on any driver. The store is the truth: what has a receipt is not run again."""

import logging
import time
from collections.abc import Callable
from functools import partial

from schemas.capture import CaptureSpec, MethodCall
from schemas.errors import FingerprintError
from schemas.outcome import CaptureOutcome
from schemas.receipts import Fingerprint, Manifest, Receipt
from tasks.drive import Driver
from tasks.fingerprint import differences, package_versions
from tasks.store.arrays import SampleTable, create_capture
from tasks.store.events import tell
from tasks.store.lease import hold
from tasks.store.location import Location
from tasks.store.paths import all_units, receipt_path
from tasks.store.receipts import drop_receipt, receipts_in
from tasks.store.seal import drop_incomplete, is_sealed, read_manifest, seal
from tasks.unit import UnitDone, UnitJob, run_unit

LOG = logging.getLogger(__name__)
OnUnit = Callable[[UnitDone], None]


def run_capture(
    root: Location,
    spec: CaptureSpec,
    table: Callable[[], SampleTable],
    driver: Driver,
    device: str = "cpu",
    fuse: tuple[MethodCall, ...] = (),
    allowed: tuple[str, ...] = (),
    mix_fingerprints: bool = False,
    take_over_lease: bool = False,
    on_unit: OnUnit | None = None,
) -> CaptureOutcome:
    """Produce every missing unit of a capture and seal it; a sealed one is returned at once.

    Args:
        root: where captures lie.
        spec: what is captured.
        table: gives the samples' keys, labels and lengths; called only when the capture must be created.
        driver: runs units, here or on workers.
        device: `cpu` or `cuda`, on the workers.
        fuse: one-pass methods that run while rows are in memory.
        allowed: packages outside the project whose methods may run.
        mix_fingerprints: allow workers of different versions or devices.
        take_over_lease: take the capture over from a process that holds it.
        on_unit: called here after each unit.

    Raises:
        LeaseError: if another process is at work on the same capture.
        FingerprintError: if this would mix versions, devices or thread counts.
        SubspanError: what a unit raised.
    """
    begun = time.perf_counter()
    capture = spec.id
    if is_sealed(root, capture):
        return _outcome(read_manifest(root, capture), capture, computed=False)
    with hold(root, capture, take_over=take_over_lease) as lease:
        if is_sealed(root, capture):
            return _outcome(read_manifest(root, capture), capture, computed=False)
        create_capture(root, spec, table(), {"packages": package_versions()})
        check = _FingerprintCheck(root, mix_fingerprints)
        drop_incomplete(root, spec)
        done: set[str] = set()
        for name, receipt in receipts_in(
            root, capture
        ):  # one at a time: a large capture has more of them than memory holds
            check(receipt)
            done.add(name)

        def finished(unit: UnitDone) -> None:
            lease.check()
            check(unit.receipt, made_now=not unit.skipped)
            if on_unit is not None:
                on_unit(unit)

        job = partial(
            UnitJob,
            request=spec.request,
            root=root.url,
            capture=capture,
            device=device,
            fuse=fuse,
            allowed=allowed,
        )
        jobs = [job(unit=unit) for unit in all_units(spec) if unit.name not in done]
        tell(LOG, "capture.begin", capture=capture, units=len(jobs), done=len(done))
        driver(run_unit, jobs, finished)
        lease.check()
        manifest = seal(root, spec)
        seconds = time.perf_counter() - begun
        tell(LOG, "capture.sealed", capture=capture, seconds=seconds, failed_samples=len(manifest.failures))
    return _outcome(manifest, capture, computed=True, seconds=time.perf_counter() - begun)


class _FingerprintCheck:
    """Refuses receipts of different fingerprints in one capture."""

    def __init__(self, root: Location, mix: bool) -> None:
        self.root, self.mix = root, mix
        self.first: Fingerprint | None = None

    def __call__(self, receipt: Receipt, made_now: bool = False) -> None:
        if self.first is None:
            self.first = receipt.fingerprint
        if receipt.fingerprint != self.first and not self.mix:
            if made_now:
                drop_receipt(self.root, receipt.capture, receipt.unit)  # else it would block every later run
            place = f"{self.root.url}/{receipt_path(receipt.capture, receipt.unit)}"
            again = "" if made_now else f"; or delete {place}, so that its unit is done again"
            raise FingerprintError(
                f"unit {receipt.unit.name} was made on {receipt.worker} with {differences(self.first, receipt.fingerprint)}: "
                "equal bytes are promised for equal versions, device and threads only; use one kind of worker, or set "
                f"execution.mix_fingerprints to accept a tolerance instead{again}"
            )


def _outcome(manifest: Manifest, capture: str, computed: bool, seconds: float = 0.0) -> CaptureOutcome:
    return CaptureOutcome(
        name="",
        id=capture,
        rows=manifest.rows,
        failures=manifest.failures,
        truncated=manifest.truncated,
        saturated=manifest.saturated,
        computed=computed,
        seconds=seconds,
    )

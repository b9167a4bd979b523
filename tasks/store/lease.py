"""A lease keeps two runs off one capture: exclusive creation, a random token, and a heartbeat.

Leases are numbered files, `captures/<id>.lease/000001.json`, each made by exclusive creation; the highest
number holds. Taking over is making the next number, so that of two who try only one succeeds, and the former
holder sees at its next beat that a higher number is there. Work under a lost lease does no harm (units are
idempotent): the lease saves work and keeps sealing simple.

When a lease counts as dead: its process is gone (same host and boot, by process id and start time); or its
beat is older than `missed` beats by UTC *and* stands still while the newcomer watches it for one and a half
beats by its own clock. So a newcomer with a wrong clock waits in vain but takes nothing away.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from schemas.base import Frozen, canonical_json
from schemas.errors import LeaseError, NotFoundError, StoreError
from tasks.store.events import tell
from tasks.store.location import Location
from tasks.store.paths import lease_path

LOG = logging.getLogger(__name__)
_held: set[str] = set()
"""Tokens of the leases that this process holds."""
CREATE_TRIES = 8
"""How often a newcomer looks again after another was faster."""


class LeaseRecord(Frozen):
    """What a lease file says."""

    token: str
    """Random: tells one holder from another."""
    host: str
    boot: str
    """Which boot and which process namespace the process id belongs to."""
    pid: int
    started: float
    """When the process began, in seconds; on Linux since the boot: a process id alone may be used again."""
    since: str
    """UTC time of taking the lease."""
    beat: int
    beaten: float
    """Seconds since 1970, UTC, of the last beat."""
    beat_seconds: float

    @property
    def holder(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host} since {self.since}"


def _boot() -> str:
    """Names the space in which process ids are unique: this boot, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _began(pid: int) -> float:
    """When a process began. Linux counts from its boot; by the wall clock every process would move when that is set."""
    created = psutil.Process(pid).create_time()
    return created - psutil.boot_time() if psutil.LINUX else created


def _new_record(beat_seconds: float) -> LeaseRecord:
    return LeaseRecord(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        started=_began(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        beat=0,
        beaten=time.time(),
        beat_seconds=beat_seconds,
    )


def current_lease(root: Location, capture_id: str) -> tuple[int, LeaseRecord | None]:
    """The highest number and what it says; 0 if nobody holds; None if the file is unreadable."""
    folder = lease_path(capture_id)
    numbers = [int(stem) for name in root.ls(folder) if (stem := name.removesuffix(".json")).isdigit()]
    if not numbers:
        return 0, None
    number = max(numbers)
    try:
        return number, LeaseRecord.model_validate_json(root.read(_file(capture_id, number)))
    except (NotFoundError, ValidationError):
        return number, None


def _file(capture_id: str, number: int) -> str:
    return f"{lease_path(capture_id)}/{number:06d}.json"


def _process_gone(record: LeaseRecord) -> bool:
    """Whether the holder was a process of this very machine and is no more."""
    if record.boot != _boot():
        return False
    if record.pid == os.getpid() and record.token not in _held:
        return True  # of a run in this process that ended while its store was gone, so that the file stayed
    try:
        return abs(_began(record.pid) - record.started) > 1.0
    except psutil.NoSuchProcess:
        return True


def is_dead(root: Location, capture_id: str, number: int, record: LeaseRecord | None, missed: int) -> bool:
    """Whether a lease may be taken over; may watch it for one and a half beats."""
    if record is None:
        return True  # nothing valid is written in one step: this is damage, not a holder
    if _process_gone(record):
        return True
    if time.time() - record.beaten <= missed * record.beat_seconds:
        return False
    time.sleep(1.5 * record.beat_seconds)
    return current_lease(root, capture_id) == (number, record)


def drop_left(root: Location, capture_id: str) -> None:
    """Remove what is left of a sealed capture's lease whose holder, on this machine, died before it was released: nobody takes it over."""
    number, record = current_lease(root, capture_id)
    if not number:
        _drop_empty(root, capture_id)
    elif record is None or _process_gone(record):
        root.delete(lease_path(capture_id), recursive=True)


def _drop_empty(root: Location, capture_id: str) -> None:
    """Remove the folder of a lease that has no number any more; an object store has no folders."""
    if root.is_local:
        with suppress(StoreError):  # not empty: the next holder is already there
            root.delete(lease_path(capture_id))


class Lease:
    """A lease that is held. `check` between steps of work notices that it was lost."""

    def __init__(
        self, root: Location, capture_id: str, number: int, record: LeaseRecord, missed: int
    ) -> None:
        self._root, self._capture, self._number = root, capture_id, number
        self._record, self._missed = record, missed
        self._stop, self._lost = threading.Event(), ""
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._beat_on, name=f"lease-{capture_id[:8]}", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """The random name of this holder."""
        return self._record.token

    def check(self) -> None:
        """Go on, or stop because the lease is lost.

        Raises:
            LeaseError: if another process took it over, or no beat got through for too long.
        """
        if not self._lost and time.monotonic() - self._last_beat > self._missed * self._record.beat_seconds:
            self._lost = "no heartbeat could be written"
        if self._lost:
            tell(LOG, "lease.lost", logging.ERROR, capture=self._capture, reason=self._lost)
            raise LeaseError(
                f"the lease of capture {self._capture} was lost: {self._lost}; "
                "stop here, and run again when the other run is over"
            )

    def _beat_on(self) -> None:
        while not self._stop.wait(self._record.beat_seconds):
            try:
                self._beat()
            except StoreError as error:
                LOG.warning("heartbeat of capture %s failed: %s", self._capture, error)
            if self._lost:
                return

    def _beat(self) -> None:
        number, record = current_lease(self._root, self._capture)
        if number != self._number or record is None or record.token != self.token:
            self._lost = f"taken over by {record.holder}" if record else "its file is gone"
            return
        self._record = self._record.model_copy(update={"beat": self._record.beat + 1, "beaten": time.time()})
        self._root.write(_file(self._capture, self._number), canonical_json(self._record))
        self._last_beat = time.monotonic()

    def release(self) -> None:
        """Stop beating and remove the lease, and those it took over, if it is still ours."""
        self._stop.set()
        self._thread.join()
        _held.discard(self.token)
        try:
            self._remove()
        except StoreError as error:
            LOG.warning("the lease of capture %s could not be removed: %s", self._capture, error)

    def _remove(self) -> None:
        number, record = current_lease(self._root, self._capture)
        if number == self._number and record is not None and record.token == self.token:
            self._root.sweep(lease_path(self._capture))  # while it is held: the next holder writes here too
            for older in range(1, self._number + 1):
                self._root.delete(_file(self._capture, older))
        _drop_empty(self._root, self._capture)


def _acquire(
    root: Location, capture_id: str, take_over: bool, beat_seconds: float, missed: int
) -> tuple[int, LeaseRecord]:
    """Make the next number, if the present one is nobody's, dead, or to be taken over."""
    for _ in range(CREATE_TRIES):
        number, held = current_lease(root, capture_id)
        if number and not take_over and not is_dead(root, capture_id, number, held, missed):
            break
        own = _new_record(beat_seconds)
        _held.add(own.token)
        made = root.create(_file(capture_id, number + 1), canonical_json(own))
        if made and current_lease(root, capture_id) == (number + 1, own):
            return number + 1, own
        _held.discard(own.token)
        if made:
            root.delete(_file(capture_id, number + 1))
    _, held = current_lease(root, capture_id)
    holder = held.holder if held else "another process"
    advisory = (
        "" if root.atomic_create else " (this back end has no exclusive creation: the lease is advisory)"
    )
    raise LeaseError(
        f"capture {capture_id} is being worked on by {holder}{advisory}; wait until it ends, "
        "or set execution.take_over_lease if that run is dead"
    )


@contextmanager
def hold(
    root: Location, capture_id: str, take_over: bool = False, beat_seconds: float = 10, missed: int = 6
) -> Iterator[Lease]:
    """Hold the lease of a capture; it is released on exit, also after an exception.

    Args:
        root: where the capture lies.
        capture_id: which one.
        take_over: take the lease even from a holder that seems alive.
        beat_seconds: how often the heartbeat is written.
        missed: beats without a sign of life after which a lease counts as dead.

    Raises:
        LeaseError: if another process holds it; names host, process and time.
    """
    number, record = _acquire(root, capture_id, take_over, beat_seconds, missed)
    lease = Lease(root, capture_id, number, record, missed)
    tell(LOG, "lease.taken", capture=capture_id, number=number, taken_over=number > 1)
    try:
        yield lease
    finally:
        lease.release()
        tell(LOG, "lease.released", capture=capture_id, number=number)

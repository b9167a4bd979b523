import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.base import canonical_json
from schemas.errors import LeaseError, StoreError
from tasks.store import lease as lease_module
from tasks.store.lease import Lease, current_lease, drop_left, hold
from tasks.store.location import Location

ID = "0123456789abcdef"
BEAT = 0.05
MANY = 10_000
"""Missed beats that only a hang makes; a busy machine keeps a thread waiting for seconds."""
HOLD = f"""
import sys, time
from tasks.store.lease import hold
from tasks.store.location import Location
with hold(Location(sys.argv[1]), {ID!r}):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def other_process(root: Location) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, root.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def check_for_a_while(lease: lease_module.Lease) -> None:
    """Check until it raises, for two minutes at most."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.01)


def foreign(root: Location, **changes: object) -> None:
    """Make the present lease look as if another machine held it."""
    number, record = current_lease(root, ID)
    assert record is not None
    changed = record.model_copy(update={"boot": "elsewhere", "host": "far", **changes})
    root.write(f"captures/{ID}.lease/{number:06d}.json", canonical_json(changed))


def test_held_and_released(any_root: Location) -> None:
    with hold(any_root, ID) as lease:
        lease.check()
        number, record = current_lease(any_root, ID)
        assert number == 1
        assert record is not None
        assert record.token == lease.token
        assert record.pid == os.getpid()
    assert any_root.walk() == {}
    with hold(any_root, ID) as again:
        assert again.token != lease.token


def test_released_after_an_exception(root: Location) -> None:
    with pytest.raises(RuntimeError, match="work failed"), hold(root, ID):
        raise RuntimeError("work failed")
    assert root.walk() == {}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease")]


def test_the_second_run_is_refused(any_root: Location) -> None:
    with (
        hold(any_root, ID) as lease,
        pytest.raises(LeaseError, match=rf"process {os.getpid()} on \S+ since 20\S+; wait .*take_over_lease"),
        hold(any_root, ID),
    ):
        pytest.fail("two hold it")
    assert lease.token
    assert any_root.walk() == {}


def test_another_process_is_refused_and_named(root: Location) -> None:
    with (
        other_process(root) as process,
        pytest.raises(LeaseError, match=f"process {process.pid} on"),
        hold(root, ID),
    ):
        pytest.fail("two hold it")


def watch_sleeps(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None] = lambda: None) -> list[float]:
    """The pauses that a newcomer makes, none of which is waited for; `then` happens in each."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        then()

    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr(lease_module, "time", clock)
    return pauses


def test_a_killed_process_on_this_host_does_not_block(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is taken without watching for a beat."""
    with other_process(root) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        pauses = watch_sleeps(monkeypatch)
        with hold(root, ID) as lease:
            lease.check()
            assert current_lease(root, ID)[0] == 2
        assert pauses == []
    assert root.walk() == {}


def test_what_a_killed_process_left_on_a_sealed_capture_goes(root: Location) -> None:
    with other_process(root) as process:
        drop_left(root, ID)
        assert current_lease(root, ID)[0] == 1, "its holder lives"
        process.send_signal(signal.SIGKILL)
        process.wait()
        drop_left(root, ID)
    assert root.ls("captures") == []
    drop_left(root, ID)


def test_a_release_that_was_stopped_half_way_is_ended(root: Location) -> None:
    """Its file is gone, the folder not yet; that of the next holder stays."""
    with hold(root, ID):
        root.delete(f"captures/{ID}.lease/000001.json")
        drop_left(root, ID)
        assert root.ls("captures") == []
    root.write(f"captures/{ID}.lease/other", b"")
    drop_left(root, ID)
    assert root.ls(f"captures/{ID}.lease") == ["other"]


def test_a_reused_process_id_does_not_block(root: Location) -> None:
    with hold(root, ID, beat_seconds=60):
        _, record = current_lease(root, ID)
        assert record is not None
        older = record.model_copy(update={"started": record.started - 100})
        root.write(f"captures/{ID}.lease/000001.json", canonical_json(older))
        with hold(root, ID) as lease:
            lease.check()


def test_take_over_and_the_former_holder_notices(any_root: Location) -> None:
    with (
        hold(any_root, ID, beat_seconds=BEAT, missed=MANY) as first,
        hold(any_root, ID, take_over=True) as second,
    ):
        with pytest.raises(LeaseError, match=rf"was lost: taken over by process {os.getpid()}"):
            check_for_a_while(first)
        second.check()
        first.release()
        second.check()
        assert current_lease(any_root, ID)[0] == 2
    assert any_root.walk() == {}


def test_a_beating_lease_of_another_host_is_respected(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is an hour behind, so it looks old, but it beats while the newcomer watches."""
    hour_ago = {"beaten": time.time() - 3600, "beat_seconds": 10.0}
    with hold(root, ID, beat_seconds=60):
        foreign(root, **hour_ago)
        pauses = watch_sleeps(monkeypatch, lambda: foreign(root, beat=1, **hour_ago))
        with pytest.raises(LeaseError, match="on far"), hold(root, ID):
            pytest.fail("two hold it")
    assert pauses == [15.0]


def test_a_silent_lease_of_another_host_is_taken_over(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(root, ID, beat_seconds=60):
        foreign(root, beaten=time.time() - 3600, beat_seconds=10.0)
        pauses = watch_sleeps(monkeypatch)
        with hold(root, ID) as lease:
            lease.check()
            assert current_lease(root, ID)[0] == 2
    assert pauses == [15.0]


def test_a_young_lease_of_another_host_is_respected(root: Location) -> None:
    with hold(root, ID, beat_seconds=60):
        foreign(root, beaten=time.time())
        with pytest.raises(LeaseError, match="on far"), hold(root, ID):
            pytest.fail("two hold it")


def test_one_of_many_wins(any_root: Location) -> None:
    held, refused, ready, done = [], [], threading.Barrier(6), threading.Barrier(6)

    def attempt() -> None:
        ready.wait()
        try:
            with hold(any_root, ID) as lease:
                held.append(lease.token)
                done.wait()
        except LeaseError:
            refused.append(1)
            done.wait()

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    assert any_root.walk() == {}


def test_the_heart_beats(root: Location) -> None:
    with hold(root, ID, beat_seconds=BEAT, missed=MANY) as lease:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            _, record = current_lease(root, ID)
            if record is not None and record.beat >= 3:
                break
            time.sleep(0.01)
        lease.check()
    assert record is not None
    assert record.beat >= 3


def test_a_holder_whose_beats_do_not_arrive_stops(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreError("unreachable")

    with hold(root, ID, beat_seconds=BEAT, missed=2) as lease:
        monkeypatch.setattr(lease_module, "current_lease", fail)
        with pytest.raises(LeaseError, match="no heartbeat could be written"):
            check_for_a_while(lease)
        monkeypatch.undo()


def test_a_holder_whose_file_is_gone_stops(root: Location) -> None:
    with hold(root, ID, beat_seconds=BEAT, missed=MANY) as lease:
        root.delete(f"captures/{ID}.lease", recursive=True)
        with pytest.raises(LeaseError, match="file is gone"):
            check_for_a_while(lease)


def test_a_damaged_lease_does_not_block(root: Location) -> None:
    root.write(f"captures/{ID}.lease/000004.json", b"?")
    with hold(root, ID) as lease:
        lease.check()
        assert current_lease(root, ID)[0] == 5
    assert root.walk() == {}


def test_an_advisory_place_is_named(root: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Location, "atomic_create", False)
    with hold(root, ID), pytest.raises(LeaseError, match="the lease is advisory"), hold(root, ID):
        pytest.fail("two hold it")


def test_a_lease_that_this_process_could_not_remove_is_dead(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose store was gone at its end leaves its file; the next run in the same process goes on at once."""

    def gone(self: Lease) -> None:
        raise StoreError("gone")

    with hold(root, "a"):
        with pytest.raises(LeaseError), hold(root, "a"):
            pass
        monkeypatch.setattr(Lease, "_remove", gone)
    monkeypatch.undo()
    assert current_lease(root, "a")[0] == 1
    with hold(root, "a"):
        assert current_lease(root, "a")[0] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="times of processes come from /proc on Linux only")
def test_a_holder_lives_on_when_the_clock_of_the_machine_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel then tells another time of its boot, and psutil other times of every process."""
    import psutil

    root, boot = Location(str(tmp_path)), psutil.boot_time()
    with other_process(root) as process:
        before = psutil.Process(process.pid).create_time()
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + 3600)
        assert psutil.Process(process.pid).create_time() == before + 3600
        with pytest.raises(LeaseError, match="is being worked on"), hold(root, ID):
            pass


def test_a_holder_killed_in_a_write_leaves_no_folder_behind(root: Location) -> None:
    with other_process(root) as process:
        process.kill()
        process.wait()
    root.write(f"captures/{ID}.lease/000001.json.{0:032x}.partial", b"half")
    with hold(root, ID) as lease:
        lease.check()
    assert root.ls("captures") == []

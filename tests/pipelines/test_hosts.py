"""Workers on several hosts: network namespaces with addresses of their own on one bridge, and one file system. Hosts are cut off in
mid-run and come back when the capture is sealed.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
from distributed import Client

from pipelines.check import damages
from pipelines.cluster import DaskDriver, open_client
from pipelines.execute import execute
from pipelines.plan import make_plan
from pipelines.progress import Quiet
from pipelines.serial import PlainSteps, run_serial
from schemas.execution import Execution
from tasks.store.location import Location
from tests.pipelines.outside import process, scheduler, wait_for_workers, wait_until, worker_command
from tests.pipelines.runs import UnitLog, finished, store_bytes, vectors_run

pytestmark = pytest.mark.alone
UNREACHABLE = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}
"""How soon a host that does not answer is given up (Dask: 30 seconds, and 11 at least)."""
SLOW: dict[str, Any] = {"n": 320, "network": {"pause": 0.1}}


class Host(NamedTuple):
    """A namespace that stands for a machine."""

    name: str
    address: str
    link: str
    """The end of its cable that is here."""

    def cut(self) -> None:
        """Pull the cable."""
        ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Put it back."""
        ip("link", "set", self.link, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, list[Host]]]:
    """The address of this machine on a bridge, and three hosts on it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and `ip` for network namespaces")
    number = os.getpid()
    net = f"10.{200 + number % 50}.{number // 50 % 250}"
    bridge = f"sb{number}"
    with ExitStack() as undo:
        try:
            ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no bridges: {error.stderr.strip()}")
        undo.callback(ip, "link", "del", bridge)
        ip("addr", "add", f"{net}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        yield (
            f"{net}.1",
            [undo.enter_context(host(f"sh{number}-{i}", f"{net}.{i}", bridge)) for i in (2, 3, 4)],
        )


@contextmanager
def host(name: str, address: str, bridge: str) -> Iterator[Host]:
    ip("netns", "add", name)
    try:
        inside = ("-n", name)
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "master", bridge, "up")
        ip(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "link", "set", "lo", "up")
        yield Host(name, address, name)
    finally:
        ip("netns", "del", name)


def pids(client: Client) -> dict[str, int]:
    """Address to process number of every worker."""
    return {address.split(":")[1].strip("/"): pid for address, pid in client.run(os.getpid).items()}


def test_hosts_that_are_cut_off_do_no_harm(
    hosts: tuple[str, list[Host]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three hosts, one loses its cable and goes on computing; another stands still besides, in the middle of a unit that somebody
    else then does again, and ends it when the capture is sealed and the cable is back.
    """
    with monkeypatch.context() as patch:
        patch.setattr("tests.factories.time", SimpleNamespace(sleep=lambda _: None))
        capture = run_serial(vectors_run(tmp_path / "quiet", **SLOW)).captures[0].id
    expected = store_bytes(tmp_path / "quiet", capture)
    here, (first, running, frozen) = hosts
    run, log = vectors_run(tmp_path / "run", **SLOW), UnitLog(str(tmp_path / "log"))
    plan = make_plan(run)
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path / "dask", here, **UNREACHABLE))
        for one in (first, running, frozen):
            command = ["ip", "netns", "exec", one.name, *worker_command(address, "--host", one.address)]
            stack.enter_context(process(command, tmp_path / f"{one.name}.log", **UNREACHABLE))
        wait_for_workers(address, 3)
        execution = Execution(cluster="address", address=address, device="cpu")
        client = stack.enter_context(open_client(execution, 1, "cpu", plan.memory_bytes))
        of = pids(client)
        assert set(of) == {first.address, running.address, frozen.address}
        stray = psutil.Process(of[frozen.address])
        cut = Cut(log, running, frozen, stray)
        driver = DaskDriver(client, 2)
        execute(plan, lambda _, items, done: driver(log, items, done), "cpu", PlainSteps(), cut)
        assert cut.unit is not None
        again = [unit for event, unit, pid in log.events() if event == "begin" and pid != stray.pid]
        assert cut.unit in again
        assert store_bytes(tmp_path / "run", capture) == expected
        for one in (running, frozen):
            one.join()
        stray.send_signal(signal.SIGCONT)
        wait_until(lambda: ended(log, stray.pid, cut.unit) or not stray.is_running(), 60)
        assert ended(log, stray.pid, cut.unit), "the stray worker did not come to the end of its unit"
    assert len(finished(tmp_path / "run", plan.captures[0].spec)) > 0
    assert store_bytes(tmp_path / "run", capture) == expected
    assert [found["damage"] for found in damages(Location(str(tmp_path / "run")), capture)] == [[]]


def ended(log: UnitLog, pid: int, unit: str | None) -> bool:
    """Whether the process wrote the whole unit, though somebody else had done so before."""
    return ("end", unit, pid) in log.events()


class Cut(Quiet):
    """After four units both hosts are cut off; one of them stands still from the middle of a unit on."""

    def __init__(self, log: UnitLog, running: Host, frozen: Host, stray: psutil.Process) -> None:
        self.done, self.unit = 0, None
        self.log, self.running, self.frozen, self.stray = log, running, frozen, stray

    def advance(self, label: str, tokens: int = 0) -> None:
        self.done += 1
        if self.done == 4:
            wait_until(lambda: self.stray.pid in self.log.open_units(), 20)
            self.stray.send_signal(signal.SIGSTOP)
            self.frozen.cut()
            self.running.cut()
            self.unit = self.log.open_units().get(self.stray.pid)

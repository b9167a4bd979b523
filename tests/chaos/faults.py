"""What goes wrong, and when."""

import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.flows import Processes, hit, wait_until
from tests.chaos.scenario import Fault

FULL_SECONDS, STOPPED_SECONDS, MOMENT_SECONDS = 1.0, 1.5, 60.0
ROOM = "64m"
SIGNALS = {"flow SIGKILL": signal.SIGKILL, "flow SIGINT": signal.SIGINT, "flow SIGTERM": signal.SIGTERM}


def mount(folder: Path) -> None:
    """A small disk of its own at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Undo that; the files are kept at the same place."""
    kept = folder.with_name(folder.name + ".kept")
    shutil.copytree(folder, kept)
    subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(folder)
    kept.rename(folder)


def fill(filler: Path) -> None:
    """Leave no byte free on the disk of this file."""
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def reached(root: Path, fault: Fault, n_units: int) -> bool:
    """Whether the run is about what the fault waits for."""
    receipts = len(list(root.glob("captures/*.receipts/sample-*.json")))
    if fault.moment == "units":
        return receipts >= fault.units and (root / "captures").exists()
    if fault.moment == "seal":
        return receipts >= n_units or any(root.glob("captures/*.manifest.json"))
    if fault.moment == "stages":
        return any(root.glob("captures/*.manifest.json"))
    if fault.moment == "finish":
        return any(root.glob("artifacts/*/arrays.zarr"))
    return len(list(root.glob("artifacts/*/artifact.json"))) >= 3


class Blows:
    """Strikes one flow."""

    def __init__(self, processes: Processes, root: Path, disk: Path, execution: str, file: Path) -> None:
        self.processes, self.root, self.disk = processes, root, disk
        self.execution, self.file = execution, file
        self.others: list[subprocess.Popen[bytes]] = []

    def strike(
        self,
        fault: Fault,
        flow: subprocess.Popen[bytes],
        scheduler: subprocess.Popen[bytes] | None,
        n_units: int,
        rng: random.Random,
    ) -> bool:
        """Wait for the moment and let it happen; False where the flow had ended before."""
        wait_until(lambda: flow.poll() is not None or reached(self.root, fault, n_units), MOMENT_SECONDS)
        time.sleep(fault.wait)
        if flow.poll() is not None:
            return False
        if fault.kind in SIGNALS:
            hit(flow, SIGNALS[fault.kind])
        elif fault.kind == "flow stopped":
            hit(flow, signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
            hit(flow, signal.SIGCONT)
        elif fault.kind == "disk full":
            self._fill(flow)
        elif fault.kind == "clock":
            self.processes.clock.write_text(str(fault.hours * 3600))
        elif fault.kind == "second run":
            self.others.append(self.processes.flow(self.execution, self.file))
        elif fault.kind.startswith("scheduler") and scheduler is not None:
            self._scheduler(fault, scheduler)
        else:
            return self._worker(fault, rng)
        return True

    def _fill(self, flow: subprocess.Popen[bytes]) -> None:
        """What is freed meanwhile is taken too."""
        filler, end = self.disk / "filler", time.monotonic() + FULL_SECONDS
        while flow.poll() is None and time.monotonic() < end:
            fill(filler)
            time.sleep(0.01)
        filler.unlink(missing_ok=True)

    def _scheduler(self, fault: Fault, scheduler: subprocess.Popen[bytes]) -> None:
        if fault.kind == "scheduler SIGKILL":
            hit(scheduler, signal.SIGKILL)
            scheduler.wait()
            return
        hit(scheduler, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        hit(scheduler, signal.SIGCONT)

    def _worker(self, fault: Fault, rng: random.Random) -> bool:
        workers = sorted(self.processes.workers(), key=lambda process: process.pid)
        if not workers:
            return False
        with suppress(psutil.Error):
            worker = rng.choice(workers)
            if "stopped" in fault.kind:
                worker.suspend()
                time.sleep(STOPPED_SECONDS)
            if "kill" in fault.kind.lower():
                worker.kill()
            worker.resume()
        return True


def leave(root: Path, what: str, shards: list[Path], rng: random.Random) -> None:
    """Lay what a machine that lost its power may leave behind: a shard without receipt cut short, files half written."""
    if what == "cut shard" and shards:
        shard = rng.choice(shards)
        shard.write_bytes(shard.read_bytes()[: rng.randrange(shard.stat().st_size or 1)])
    if what == "partial files":
        for number, folder in enumerate(rng.sample(open_ := _open_folders(root), min(3, len(open_)))):
            (folder / f"{number}.{number:032x}.partial").write_bytes(b"half")


def _open_folders(root: Path) -> list[Path]:
    """Those of captures that are not sealed, and of artifacts that are not complete."""
    captures = [
        path
        for path in root.glob("captures/*/")
        if not (root / "captures" / f"{path.name.split('.')[0]}.manifest.json").exists()
    ]
    artifacts = [
        path
        for path in root.glob("artifacts/*/")
        if not (root / "artifacts" / path.name.split(".")[0] / "artifact.json").exists()
    ]
    inner = [path for top in (*captures, *artifacts) for path in top.rglob("*/")]
    return sorted({*captures, *artifacts, *inner})

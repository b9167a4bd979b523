"""The processes of a scenario: flows, schedulers, workers. All carry a mark in their environment, by which each is found again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

CLOCK = Path(__file__).parent / "clock"
PROJECT = Path(__file__).parents[2]
END_SECONDS = 10
WITHOUT_PREFECT = """
import sys
from pathlib import Path
from pipelines.cluster import DaskDriver, open_client
from pipelines.execute import execute
from pipelines.plan import make_plan
from pipelines.progress import Quiet
from pipelines.runfile import load_run
from pipelines.serial import PlainSteps

if __name__ == "__main__":
    plan = make_plan(load_run(Path(sys.argv[1])))
    with open_client(plan.run.execution, 1, "cpu") as client:
        execute(plan, DaskDriver(client, 2), "cpu", PlainSteps(), Quiet())
"""


class Processes:
    """What a scenario starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.mark = folder, folder / "clock", str(folder)
        self._logs = 0
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A process in a group of its own; what it says lies in the scenario's folder."""
        self._logs += 1
        variables = os.environ | {
            "PYTHONPATH": f"{CLOCK}:{PROJECT}",
            "OMP_NUM_THREADS": "1",
            "CHAOS_CLOCK": str(self.clock),
            "CHAOS_MARK": self.mark,
            "DASK_LOGGING__DISTRIBUTED": "info",
            "PREFECT_HOME": str(self.folder / "prefect"),
        }
        with (self.folder / f"{self._logs:02}.log").open("wb") as out:
            started = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                env=variables,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=PROJECT,
            )
        self._started.append(started)
        return started

    def flow(self, execution: str, file: Path) -> subprocess.Popen[bytes]:
        """A run of a file, executed so."""
        if execution in ("serial", "threads", "prefect"):
            more = [] if execution == "prefect" else ["--serial"]
            return self.start([sys.executable, "-m", "subspan", "run", str(file), *more])
        script = self.folder / "without_prefect.py"
        script.write_text(WITHOUT_PREFECT)
        return self.start([sys.executable, str(script), str(file)])

    def cluster(self) -> tuple[str, subprocess.Popen[bytes]]:
        """A scheduler with two workers that come back when they die: its address and process."""
        dask = str(Path(sys.executable).parent / "dask")
        options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        scheduler = self.start([dask, "scheduler", *options])
        log = self.folder / f"{self._logs:02}.log"
        wait_until(lambda: "Scheduler at:" in log.read_text(), 60)
        address = next(line for line in log.read_text().splitlines() if "Scheduler at:" in line).split()[-1]
        here = ["--host", "127.0.0.1", "--nthreads", "1", "--nworkers", "2", "--no-dashboard"]
        here += ["--local-directory", str(self.folder / "scratch")]
        self.start([dask, "worker", address, *here])
        return address, scheduler

    def marked(self) -> list[psutil.Process]:
        """Every process of this scenario, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("CHAOS_MARK") == self.mark and process.status() != "zombie":
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """Those that run units."""
        found = []
        for process in self.marked():
            with suppress(psutil.Error):
                if "multiprocessing.spawn" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill all that is left, and let none of them wait to be told of."""
        for _ in range(20):
            left = self.marked()
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            if not left:
                break
            psutil.wait_procs(left, timeout=1)
        for started in self._started:
            started.wait(END_SECONDS)
        self._started.clear()


def hit(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    if process.poll() is None:
        process.send_signal(number)


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether it came to that in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True

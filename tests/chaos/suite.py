"""One scenario from its seed to its verdict."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from schemas.capture import CaptureSpec
from tests.chaos.faults import Blows, leave, mount, unmount
from tests.chaos.flows import Processes, wait_until
from tests.chaos.law import answers, broken, capture_of, finished_shards, open_shards
from tests.chaos.scenario import Scenario, run_of

ATTEMPTS, ATTEMPT_SECONDS, END_SECONDS = 4, 120.0, 60.0
GOOD = (0, 2)


class Verdict(NamedTuple):
    """How a scenario went."""

    scenario: Scenario
    struck: tuple[bool, ...]
    """Whether each fault found the run still at work."""
    attempts: int
    seconds: float
    wrong: list[str]

    def __str__(self) -> str:
        scenario = self.scenario
        faults = ", ".join(
            f"{fault}{'' if hit else ' (too late)'}"
            for fault, hit in zip(scenario.faults, self.struck, strict=False)
        )
        end = "; ".join(self.wrong) or "nothing lost"
        return (
            f"{scenario.seed:6} {scenario.execution:9} {faults}, left: {scenario.left} | "
            f"{self.attempts} attempts, {self.seconds:.1f} s | {end}"
        )


def live(scenario: Scenario, folder: Path) -> Verdict:
    """Let a scenario happen in a folder, run it again with everything well, and judge what lies there."""
    begun = time.monotonic()
    disk = folder / "disk"
    full = any(fault.kind == "disk full" for fault in scenario.faults)
    if full:
        mount(disk)
    processes = Processes(folder)
    try:
        struck, attempts, wrong = _Life(scenario, folder, processes).lived()
    finally:
        processes.end()
        if full:
            unmount(disk)
    return Verdict(scenario, struck, attempts, time.monotonic() - begun, wrong)


class _Life:
    def __init__(self, scenario: Scenario, folder: Path, processes: Processes) -> None:
        self.scenario, self.processes = scenario, processes
        self.root, self.file = folder / "disk" / "out", folder / "run.yaml"
        self.rng = random.Random(scenario.seed)
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.blows = Blows(processes, self.root, folder / "disk", scenario.execution, self.file)

    def lived(self) -> tuple[tuple[bool, ...], int, list[str]]:
        """Which faults struck, how often it ran, and what is wrong."""
        spec, n_units = capture_of(run_of(self.root, self.scenario.arrangement))
        self._ready()
        flow = self._flow()
        struck = tuple(
            self.blows.strike(fault, flow, self.scheduler, n_units, self.rng)
            for fault in self.scenario.faults
        )
        wrong = self._over([flow, *self.blows.others])
        wrong += answers(self.root)
        kept = finished_shards(self.root, spec)
        leave(self.root, self.scenario.left, open_shards(self.root, spec), self.rng)
        attempts = self._again(wrong)
        wrong += broken(self.root, self.scenario.arrangement) + self._touched(spec, kept)
        return struck, attempts, wrong

    def _ready(self) -> None:
        """Write the run file; with a cluster, where it asks for one."""
        execution: dict[str, object] = {"cluster": "processes", "workers": 2}
        if self.scenario.execution == "threads":
            execution["cluster"] = "threads"
        if self.scenario.execution == "address":
            address, self.scheduler = self.processes.cluster()
            execution = {"cluster": "address", "address": address}
        run = run_of(self.root, self.scenario.arrangement, **execution)
        self.file.write_text(yaml.safe_dump(run.model_dump(mode="json")))

    def _flow(self) -> subprocess.Popen[bytes]:
        return self.processes.flow(self.scenario.execution, self.file)

    def _over(self, flows: list[subprocess.Popen[bytes]]) -> list[str]:
        """Wait until all flows have ended and their workers with them; what does not end."""
        wrong = []
        for flow in flows:
            if not wait_until(lambda flow=flow: flow.poll() is not None, ATTEMPT_SECONDS):
                wrong.append(f"a flow did not end within {ATTEMPT_SECONDS:.0f} seconds")
        if self.scenario.execution == "processes":
            _, alive = psutil.wait_procs(self.processes.workers(), timeout=END_SECONDS)
            wrong += [f"worker {process.pid} outlived its flow" for process in alive]
        self.processes.end()  # clusters that others run, and Prefect's server, which nobody ends for a killed flow
        return wrong

    def _again(self, wrong: list[str]) -> int:
        """Run until it ends well: how often that took."""
        for attempt in range(1, ATTEMPTS + 1):
            self._ready()
            flow = self._flow()
            wrong += self._over_well(flow)
            if flow.poll() in GOOD:
                return attempt
        wrong.append(f"{ATTEMPTS} attempts with everything well ended with {flow.poll()}")
        return ATTEMPTS

    def _over_well(self, flow: subprocess.Popen[bytes]) -> list[str]:
        ended = wait_until(lambda: flow.poll() is not None, ATTEMPT_SECONDS)
        wrong = [] if ended else ["an attempt with everything well did not end"]
        mine = [p for p in self.processes.marked() if self.scenario.execution not in ("address", "prefect")]
        _, alive = psutil.wait_procs(mine, timeout=10)
        wrong += [f"process {process.pid} was left over" for process in alive]
        self.processes.end()
        return wrong

    def _touched(self, spec: CaptureSpec, kept: dict[str, tuple[int, int]]) -> list[str]:
        now = finished_shards(self.root, spec)
        touched = sorted(path for path, stat in kept.items() if now.get(path) != stat)
        return [f"finished shards were written again, such as {touched[0]}"] if touched else []


def kept_or_removed(scenario: Scenario) -> tuple[Verdict, Path]:
    """A scenario in a folder of its own, which stays only where something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{scenario.seed}-"))
    os.chmod(folder, 0o755)
    verdict = live(scenario, folder)
    if not verdict.wrong:
        shutil.rmtree(folder)
    return verdict, folder

"""What orchestration costs: workers beside one process, a future, and a Prefect server over many runs.

    python -m benchmarks.orchestration [--pairs 3] [--tokens 90000] [--units 10000] [--flows 50] [--only workers,units,flows]

workers   a capture of MiniLM's six blocks: seconds of one process of one thread, over twice those of two Dask workers of one thread.
          Processes are started, the network loaded and the data tokenised before; metadata, lease, receipts and seal are in both.
units     units that only leave a receipt of usual size, through the capture's own loop and two Dask workers: milliseconds of each,
          and the memory of the process that holds client and scheduler, from unit 2,000 on
flows     the flow `subspan-run` again and again, 20 Prefect tasks each, against a server of its own (SQLite): failed states, and the
          server's memory, from two fifths of the runs to the last

Results go to benchmarks/results/orchestration.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import overhead, tiny_units
from benchmarks.children import child, scratch_folder
from benchmarks.protocol import environment, pairs, ratio, save, saved

WORKERS = 2
RATIO_TARGET, UNIT_TARGET_MS = 0.80, 10.0
FLAT = 0.05
"""Growth that still counts as flat, of what was there when it was warm."""
WARM = 2_000
"""Units after which logs of a fixed length, such as Dask's transitions, are full."""
TASKS = 20


def main() -> None:
    """Measure the asked parts, print a line for each, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=overhead.TOKENS)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--flows", type=int, default=50)
    parser.add_argument("--only", default="workers,units,flows")
    options = parser.parse_args()
    results, only = saved("orchestration"), options.only.split(",")
    results["environment"] = environment(1, ("torch", "dask", "distributed", "prefect"))
    if "workers" in only:
        results["workers"] = workers(options.pairs, options.tokens)
    if "units" in only:
        results["units"] = units(options.units)
    if "flows" in only:
        results["flows"] = flows(options.flows)
    print(f"saved {save('orchestration', results)}")


def workers(n_pairs: int, n_tokens: int) -> dict[str, Any]:
    """One process against two workers, alternating."""
    asked = overhead.request(overhead.BLOCKS, "lz4", n_tokens)
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(child(["-m", "benchmarks.ours"], {"request": asked, "workers": n}, 1))
            for n in (1, WORKERS)
        )
        alone, together = pairs(one.run, two.run, n_pairs)
    found = ratio(alone, together)
    efficiency, met = found.median / WORKERS, found.median / WORKERS >= RATIO_TARGET
    cpu = ratio(alone, together, "cpu_seconds")
    print(
        f"workers: {WORKERS} workers x{found} of one process, efficiency {efficiency:.2f} (target >= {RATIO_TARGET}), "
        f"CPU seconds of one process over theirs x{cpu.median:.2f}: {'met' if met else 'missed'}",
        flush=True,
    )
    return {
        "tokens": n_tokens,
        "efficiency": efficiency,
        "speedup": found._asdict(),
        "cpu_ratio": cpu._asdict(),
        "seconds": {"one": [r.seconds for r in alone], "two": [r.seconds for r in together]},
        "target": RATIO_TARGET,
        "met": met,
    }


def units(n: int) -> dict[str, Any]:
    """Units that cost nothing."""
    from pipelines.cluster import DaskDriver, open_client
    from pipelines.resolve import prepare
    from schemas.capture import CaptureRequest
    from schemas.errors import StoreError
    from schemas.execution import Execution
    from tasks.produce import run_capture
    from tasks.store.location import Location

    prepared = prepare(CaptureRequest.model_validate(tiny_units.request(n=n, shard_rows=1)), None)
    execution = Execution(cluster="processes", workers=WORKERS, device="cpu")
    with (
        tempfile.TemporaryDirectory(dir=scratch_folder()) as folder,
        open_client(execution, 1, "cpu") as client,
    ):
        driver = tiny_units.ReceiptsOnly(DaskDriver(client, execution.window), max(1, n // 40))
        with suppress(StoreError):  # nothing can be sealed: there are no shards
            run_capture(Location(folder), prepared.spec, lambda: prepared.table, driver)
    milliseconds, cpu = 1000 * driver.seconds / n, 1000 * driver.cpu_seconds / n
    memory = driver.memory
    growth, per_unit = grown([point for point in memory if point[0] >= min(WARM, n // 2)])
    met = milliseconds <= UNIT_TARGET_MS and growth <= FLAT
    print(
        f"units: {driver.n:,} of them, {milliseconds:.2f} ms each (target <= {UNIT_TARGET_MS:.0f}), "
        f"{cpu:.2f} ms CPU of client and scheduler; these grow by {100 * growth:.1f} % ({per_unit:,.0f} bytes a unit) once warm "
        f"(flat: <= {100 * FLAT:.0f} %), "
        f"{memory[0][1] / 2**20:.0f} to {memory[-1][1] / 2**20:.0f} MiB: {'met' if met else 'missed'}",
        flush=True,
    )
    return {
        "n": driver.n,
        "ms": milliseconds,
        "cpu_ms": cpu,
        "growth": growth,
        "bytes_per_unit": per_unit,
        "memory": memory,
        "met": met,
    }


def flows(n: int) -> dict[str, Any]:
    """Flow runs against a server."""
    with tempfile.TemporaryDirectory(dir=scratch_folder(), ignore_cleanup_errors=True) as name:
        folder, memory = Path(name), list[tuple[int, int]]()
        with server(folder / "prefect") as process:
            begun = time.perf_counter()
            import psutil

            from pipelines.run import run  # Prefect reads its settings when it is loaded

            watched = psutil.Process(process.pid)
            for index in range(n):
                run(run_form(folder, index))
                memory.append((index * TASKS, watched.memory_info().rss))
            seconds = time.perf_counter() - begun
            states = counted_states()
    later = [point for point in memory if point[0] >= 2 * n * TASKS // 5]
    growth, _ = grown(later)
    done = {kind: sum(found.values()) for kind, found in states.items()}
    whole = all(set(found) == {"COMPLETED"} for found in states.values())
    met = whole and growth <= FLAT
    print(
        f"flows: {done['flow_runs']} flow runs and {done['task_runs']:,} task runs, {states}, "
        f"{1000 * seconds / done['task_runs']:.0f} ms a task run; the server grows by {100 * growth:.1f} % over the later three fifths "
        f"(flat: <= {100 * FLAT:.0f} %), "
        f"{memory[0][1] / 2**20:.0f} to {memory[-1][1] / 2**20:.0f} MiB: {'met' if met else 'missed'}",
        flush=True,
    )
    return {"states": states, "seconds": seconds, "growth": growth, "memory": memory, "met": met}


def grown(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """By least squares: growth from the first to the last over the first, and for each step."""
    x, y = np.array(points, dtype=np.float64).T
    slope = float(np.polyfit(x, y, 1)[0])
    return slope * float(x[-1] - x[0]) / float(y[0]), slope


def run_form(folder: Path, index: int) -> Any:
    """A run of small captures and one group of stages: TASKS Prefect tasks, none of which was done before."""
    import yaml

    from pipelines.forms import RunForm

    captures = {f"c{k}": tiny_units.request(seed=TASKS * index + k) for k in range(TASKS - 1)}
    spec = {
        "name": f"flow-{index}",
        "root": str(folder / "out"),
        "captures": captures,
        "stages": {"summary": {"method": "spectrum.summary", "inputs": {"x": {"captures": ["c0"]}}}},
        "execution": {"cluster": "threads", "workers": 1, "device": "cpu"},
        "report": None,
    }
    file = folder / f"run-{index}.yaml"
    file.write_text(yaml.safe_dump(spec))
    return RunForm(run_file=str(file))


@contextmanager
def server(home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A Prefect server on loopback, which this process is told of."""
    import socket

    from pipelines.ui import environment as settings
    from pipelines.ui import stop, wait_for

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    os.environ |= settings(port, home, reports="") | {"PREFECT_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"{os.environ['PREFECT_API_URL']}/health", process)
        yield process
    finally:
        stop(process)


def counted_states() -> dict[str, dict[str, int]]:
    """Kind of run to state to how many."""
    import json

    found: dict[str, dict[str, int]] = {}
    for kind in ("flow_runs", "task_runs"):
        for state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED", "RUNNING", "PENDING", "SCHEDULED"):
            asked = urllib.request.Request(
                f"{os.environ['PREFECT_API_URL']}/{kind}/count",
                data=json.dumps({kind: {"state": {"type": {"any_": [state]}}}}).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(asked, timeout=60) as answer:
                count = int(answer.read())
            if count:
                found.setdefault(kind, {})[state] = count
    return found


if __name__ == "__main__":
    main()

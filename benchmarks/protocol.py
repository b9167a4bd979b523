"""How a speed is measured here: alternating runs, equal threads, medians with quartiles, memory of a child.

pairs(ours, theirs)   runs A B A B ... and keeps the ratio of each pair, so that a busy machine slows both
summary(ratios)       median and quartiles; `measurable` is False when they spread over 15 %
in_child(module, ..)  one run in a process of its own, which reports seconds and peak memory of itself
gemm_peak(dtype)      the matrix product rate of this machine right now, in flop/s
environment()         one dict that says where the numbers come from
save(name, results)   benchmarks/results/<name>.json
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tasks.threads import thread_variables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Clock = Literal["seconds", "cpu_seconds"]
MARK = "##result "
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Run(NamedTuple):
    """One run."""

    seconds: float
    cpu_seconds: float
    value: Any


class Summary(NamedTuple):
    """A ratio over all pairs."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    n: int
    measurable: bool
    """False when the quartiles are further apart than 15 % of the median."""

    def __str__(self) -> str:
        note = "" if self.measurable else ", spread over 15 %"
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}] (n={self.n}{note})"


def timed(function: Callable[[], Any]) -> Run:
    """Wall and CPU seconds of this process for one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return Run(time.perf_counter() - wall, time.process_time() - cpu, value)


def pairs(
    ours: Callable[[], Run], theirs: Callable[[], Run], n: int = 7, warm: bool = True
) -> tuple[list[Run], list[Run]]:
    """Alternate two runs A B A B ..., after one uncounted run of each unless `warm` is False."""
    if warm:
        ours(), theirs()
    runs = [(ours(), theirs()) for _ in range(n)]
    return [a for a, _ in runs], [b for _, b in runs]


def summary(values: Sequence[float]) -> Summary:
    """Median and quartiles."""
    low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
    return Summary(median, low, high, len(values), (high - low) <= 0.15 * median)


def ratio(theirs: Sequence[Run], ours: Sequence[Run], clock: Clock = "seconds") -> Summary:
    """How many times faster ours is, pair by pair, by the wall or by CPU seconds."""
    return summary([getattr(b, clock) / getattr(a, clock) for a, b in zip(ours, theirs, strict=True)])


def gemm_peak(
    dtype: type = np.float32, size: int = 2048, repeats: int = 3, clock: Clock = "seconds"
) -> float:
    """The best rate of a square matrix product, in flop/s, with the threads that BLAS has now."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, size, size)).astype(dtype)
    best = min(getattr(timed(lambda: a @ b), clock) for _ in range(repeats))
    return float(2 * size**3 / best)


def peak_bytes() -> int:
    """Highest resident memory of this process so far (Linux: VmHWM, which a parent cannot inflate)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system has no /proc/self/status with VmHWM; memory is measured on Linux only")


def report_child(function: Callable[[], Any]) -> None:
    """In a child: run, and print seconds, memory before and at the peak, and the function's value (JSON)."""
    before = peak_bytes()
    run = timed(function)
    found = {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "value": run.value}
    print(MARK + json.dumps(found | {"base_bytes": before, "peak_bytes": peak_bytes()}), flush=True)


def in_child(arguments: Sequence[str], threads: int, python: str = sys.executable) -> dict[str, Any]:
    """Run `python <arguments>` with so many BLAS threads, set up as a worker where it is ours; the child must call `report_child`.

    Raises:
        RuntimeError: if the child fails; the message ends with what it wrote.
    """
    env = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONPATH": str(ROOT)}
    if python == sys.executable:
        env |= thread_variables(threads)
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(lines[-1].removeprefix(MARK)))


def child_run(arguments: Sequence[str], threads: int, python: str = sys.executable) -> Run:
    """`in_child` as a run whose value is the whole report: for `pairs` over processes."""
    found = in_child(arguments, threads, python)
    return Run(found["seconds"], found["cpu_seconds"], found)


def peer_python(name: str, requirements: Sequence[str]) -> str:
    """The interpreter of a virtual environment .bench/<name>, made on first use."""
    folder = ROOT / ".bench" / name
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != "\n".join(requirements):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
        done.write_text("\n".join(requirements))
    return str(python)


def environment(threads: int, packages: Sequence[str] = ("torch", "numpy", "scipy")) -> dict[str, Any]:
    """Machine, threads and versions."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def saved(name: str) -> dict[str, Any]:
    """What earlier runs of a benchmark found, so that its parts can be run one by one."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def save(name: str, results: dict[str, Any]) -> Path:
    """Write benchmarks/results/<name>.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

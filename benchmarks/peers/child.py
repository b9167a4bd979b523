"""The talk between the benchmark and a process that it keeps alive. Standard library only: peers' interpreters run it.

A child imports, loads its network once, says that it is ready, and then answers lines of JSON on stdin:

    {"do": "run", "out": folder}                      the timed task; answers seconds, cpu_seconds, bytes, peak_bytes
    {"do": "read", "out": folder, "to": npy, ...}     reads back what the last run wrote, untimed, for the comparison

Peak memory is the kernel's VmHWM, set back before each run (Linux), summed over the child's worker processes.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MARK = "##result "
TICK = os.sysconf("SC_CLK_TCK")

Task = Callable[[str], None]
"""Does the work and writes below a folder."""
Read = Callable[[str, str, int], None]
"""(folder of a run, path of an npy to write, samples) -> nothing."""


def arguments() -> dict[str, Any]:
    """The options that the benchmark gave; binds this process and its children to as many cores as they say."""
    options = dict(json.loads(sys.argv[1]))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options["cores"]])
    return options


def serve(task: Task, read: Read, pids: Callable[[], Sequence[int]] = lambda: [os.getpid()]) -> None:
    """Answer requests until stdin ends.

    Args:
        task: what is timed.
        read: writes float32 [site, row, feature] of the first samples as npy.
        pids: the processes that do the work; their memory and CPU seconds are summed.
    """
    _say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "run":
            _say(
                measure(lambda out=request["out"]: task(out), pids())
                | {"bytes": folder_bytes(request["out"])}
            )
        else:
            read(request["out"], request["to"], request["samples"])
            _say({"read": True})


def measure(task: Callable[[], None], pids: Sequence[int]) -> dict[str, Any]:
    """Wall seconds, and CPU seconds and highest resident bytes summed over processes."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    base, cpu, wall = _memory(pids, "VmRSS"), _cpu_seconds(pids), time.perf_counter()
    task()
    seconds = time.perf_counter() - wall
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds(pids) - cpu,
        "base_bytes": base,
        "peak_bytes": _memory(pids, "VmHWM"),
    }


def folder_bytes(folder: str) -> int:
    """Sizes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _memory(pids: Sequence[int], field: str) -> int:
    return sum(_field(pid, field) for pid in pids)


def _field(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {field}; memory is measured on Linux only")


def _cpu_seconds(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / TICK


def _say(answer: dict[str, Any]) -> None:
    sys.__stdout__.write(MARK + json.dumps(answer) + "\n")
    sys.__stdout__.flush()

"""What an object store that takes its time costs: each request waits 50 ms, and goes out alone or eight at a time.

    python -m benchmarks.object_store [--pairs 3]

A capture of twelve units at three sites by one process, the same run again, reading a site, and `verify`, against a server
of this machine (moto) behind a proxy that waits and counts. Seconds are of one request at a time over `REQUESTS` at a time.

Results go to benchmarks/results/object_store.json.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import tasks.store.location
import tasks.writer
from benchmarks.protocol import Run, environment, ratio, save, timed
from pipelines.serial import run_serial
from subspan import open_capture
from tasks.store.location import Location
from tasks.store.remote import REQUESTS
from tasks.store.verify import verify
from tests.faulty_s3 import Mixed, mixed, moto_process, s3_environment
from tests.pipelines.runs import vectors_run

SAMPLES = 192
STEPS = ("capture", "again", "read", "verify")


def main() -> None:
    """Alternate both ways, print a line for each step, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    runs: dict[tuple[str, int], list[Run]] = {(step, n): [] for step in STEPS for n in (1, REQUESTS)}
    with moto_process() as url, s3_environment(url, "captures"):
        for pair in range(options.pairs):
            for n in (1, REQUESTS):
                for step, run in steps(url, f"s3://captures/{n}-{pair}", n).items():
                    runs[step, n].append(run)
    results: dict[str, Any] = {"environment": environment(1, ("s3fs", "moto", "zarr"))}
    for step in STEPS:
        alone, together = runs[step, 1], runs[step, REQUESTS]
        results[step] = {
            "seconds": {"one": [r.seconds for r in alone], "together": [r.seconds for r in together]},
            "ratio": ratio(alone, together)._asdict(),
            "requests": together[-1].value,
        }
        print(
            f"{step}: {median(r.seconds for r in alone):.1f} s one at a time, {median(r.seconds for r in together):.1f} s "
            f"{REQUESTS} at a time, x{ratio(alone, together)}; asked {together[-1].value}",
            flush=True,
        )
    print(f"saved {save('object_store', results)}")


def steps(url: str, root: str, n: int) -> dict[str, Run]:
    """Each step's seconds, and its requests by kind, with so many at a time."""
    tasks.store.location.REQUESTS = tasks.writer.REQUESTS = n
    fate, run = Mixed(slow=True), vectors_run(root, n=SAMPLES)

    def counted(step: Callable[[], Any]) -> Run:
        fate.requests.clear()
        return timed(step)._replace(value=fate.counts())

    with mixed(url, fate):
        made = counted(lambda: run_serial(run))
        again = counted(lambda: run_serial(run))
        capture = run_serial(run).captures[0].id
        read = counted(lambda: open_capture(root, capture).site("last")["activation"].values)
        checked = counted(lambda: verify(Location(root), capture))
    return {"capture": made, "again": again, "read": read, "verify": checked}


if __name__ == "__main__":
    main()

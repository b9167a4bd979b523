"""Where the unit scheduler breaks: measured costs, a model that is checked against a real run, and 100,000 units on 1,000 workers in it.

    python -m benchmarks.scheduler_simulation [--tokens 60000] [--units 2000] [--only measure,check,scale]

measure   what a unit costs client and scheduler (CPU, as `orchestration --only units`), bytes, seconds and memory of receipts and of a
          manifest, of samples, of the plan
check     a capture of MiniLM by two workers, twice: its seconds beside those that the model gives, from its own units and the run before's
scale     makespan, utilisation and units done again, from these unit times, with stragglers, deaths, restarts, windows, workers

Results go to benchmarks/results/scheduler_simulation.json, from which each part takes what it does not measure.
"""

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import orchestration, overhead, tiny_units
from benchmarks.children import scratch_folder
from benchmarks.protocol import environment, save, saved
from benchmarks.scheduler_model import Plant, simulate

WORKERS = 2
N_UNITS, N_WORKERS = 100_000, 1_000
HOUR, DAY = 3600.0, 86400.0
BACK_SECONDS = 30.0
"""A worker that died: process, libraries, network, as the first unit of a run takes."""
TAIL = 1.5
"""Exponent of stragglers: one unit in fifty takes a Pareto time, of infinite variance."""


def main() -> None:
    """Do the asked parts, print a line for each case, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=int, help="taken from `python -m benchmarks`; there are no pairs here"
    )
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--units", type=int, default=2_000)
    parser.add_argument("--only", default="measure,check,scale")
    options = parser.parse_args()
    results, only = saved("scheduler_simulation"), options.only.split(",")
    results["environment"] = environment(1, ("torch", "dask", "distributed"))
    if "measure" in only:
        results["measured"] = measure(options.units)
    if "check" in only:
        results["check"] = check(options.tokens, results["measured"]["loop_seconds"])
    if "scale" in only:
        results["scale"] = scale(results["check"]["unit_seconds"], results["measured"])
    print(f"saved {save('scheduler_simulation', results)}")


def measure(n: int) -> dict[str, float]:
    """Costs of one unit, one receipt, one file of a manifest, one sample."""
    found = {"loop_seconds": orchestration.units(n)["cpu_ms"] / 1000}
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        found |= receipt_costs(Path(folder), n) | plan_costs(Path(folder))
    found |= manifest_costs(100_000) | sample_costs(100_000)
    for name, value in found.items():
        print(f"{name}: {value:.4g}", flush=True)
    return found


def receipt_costs(folder: Path, n: int) -> dict[str, float]:
    """Of receipts that name tiny_units.FILES files."""
    from schemas.layout import UnitRef
    from tasks.store.location import Location
    from tasks.store.paths import receipts_path
    from tasks.store.receipts import receipts_in
    from tasks.unit import UnitJob

    root = Location(str(folder))
    jobs = [UnitJob(root=root.url, capture="c", unit=UnitRef(space="tokens", index=k)) for k in range(n)]
    wrote = seconds(lambda: [tiny_units.leave_receipt(job) for job in jobs]) / n
    listed = seconds(lambda: root.ls(receipts_path("c"))) / n
    read = seconds(lambda: [None for _ in receipts_in(root, "c")]) / n
    held, memory = held_bytes(lambda: dict(receipts_in(root, "c")))
    size = sum(root.walk(receipts_path("c")).values()) / n
    return {
        "receipt_bytes": size,
        "receipt_write_seconds": wrote,
        "receipt_list_seconds": listed,
        "receipt_read_seconds": read,
        "receipt_memory_bytes": memory / len(held),
    }


def manifest_costs(n: int) -> dict[str, float]:
    """Of a manifest that names so many files."""
    from schemas.base import canonical_json
    from schemas.receipts import FileDigest, Manifest
    from tasks.store.manifest import parse_manifest

    files = {
        f"sites/{k % 12:040d}/activation/c/{k}/0": FileDigest(bytes=1 << 20, blake3="0" * 64)
        for k in range(n)
    }
    made = Manifest(schema_version=1, capture="c", files=files, receipts={}, rows={}, sealed="").with_digest()
    data = canonical_json(made)
    read = seconds(lambda: parse_manifest(data, "c", ""))
    parse_manifest.cache_clear()
    _, memory = held_bytes(lambda: parse_manifest(data, "c", ""))
    return {
        "manifest_bytes_per_file": len(data) / n,
        "manifest_read_seconds_per_file": read / n,
        "manifest_memory_bytes_per_file": memory / n,
    }


def sample_costs(n: int) -> dict[str, float]:
    """Of the sample table of a capture, as the client makes and writes it."""
    from pipelines.resolve import prepare
    from schemas.capture import CaptureRequest
    from tasks.store.arrays import create_capture
    from tasks.store.location import Location

    prepared = prepare(CaptureRequest.model_validate(tiny_units.request(n=n, shard_rows=4096)), None)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        root = Location(folder)
        wrote = seconds(lambda: create_capture(root, prepared.spec, prepared.table, {}))
        size = sum(root.walk("").values())
    return {"sample_bytes": size / n, "sample_write_seconds": wrote / n}


def check(n_tokens: int, loop_seconds: float) -> dict[str, Any]:
    """The model beside a real run that it has not seen."""
    from pipelines.cluster import DaskDriver, open_client
    from pipelines.resolve import prepare
    from schemas.capture import CaptureRequest
    from schemas.execution import Execution

    request = overhead.request(overhead.BLOCKS, "lz4", n_tokens)
    asked = {
        **request,
        "store": {**request["store"], "shard_rows": 1024, "chunk_rows": 1024, "unit_shards": 2},
    }
    prepared = prepare(CaptureRequest.model_validate(asked), None)
    execution = Execution(cluster="processes", workers=WORKERS, device="cpu")
    with open_client(execution, 1, "cpu") as client:
        driver = DaskDriver(client, execution.window)
        runs = [timed_capture(prepared, driver) for _ in range(3)]  # the first loads the network
    (before, _), (own, real) = runs[1:]
    plant = Plant(workers=WORKERS, loop_seconds=loop_seconds)
    from_own, from_before = (simulate(units, plant).makespan for units in (own, before))
    print(
        f"check: {len(own)} units of {np.mean(own):.2f} s (largest {max(own):.2f}): {real:.2f} s by two workers; "
        f"the model gives x{from_own / real:.3f} of that from their seconds, x{from_before / real:.3f} from those of the run before",
        flush=True,
    )
    return {"unit_seconds": own, "real_seconds": real, "from_own": from_own, "from_before": from_before}


def timed_capture(prepared: Any, driver: Any) -> tuple[list[float], float]:
    """Seconds of each unit, in order of units, and of all of them together."""
    from tasks.measured import MeasuredDriver
    from tasks.produce import run_capture
    from tasks.store.location import Location

    spent: list[float] = []
    units: dict[int, float] = {}
    lasted: list[float] = []

    def timed(function: Any, items: Sequence[Any], on_done: Any) -> None:
        measured = MeasuredDriver(driver, "", lambda one: spent.append(one.seconds), lambda: None)
        begun = time.perf_counter()
        measured(function, items, on_done)
        lasted.append(time.perf_counter() - begun)

    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        run_capture(
            Location(folder), prepared.spec, lambda: prepared.table, timed,
            on_unit=lambda done: units.__setitem__(done.receipt.unit.index, spent[-1]),
        )  # fmt: skip
    return [units[index] for index in sorted(units)], lasted[0]


def scale(unit_seconds: Sequence[float], measured: dict[str, float]) -> list[dict[str, Any]]:
    """Cases beside each other, each with units drawn from those that were measured, made sixty seconds long on average."""
    random = np.random.default_rng(0)
    drawn = random.choice(unit_seconds, N_UNITS)
    times = drawn * (60.0 / drawn.mean())
    late = times * np.where(random.random(N_UNITS) < 0.02, 1 + random.pareto(TAIL, N_UNITS), 1.0)
    plain = Plant(N_WORKERS, loop_seconds=measured["loop_seconds"], back_seconds=BACK_SECONDS)
    daily = replace(plain, death_rate=1 / DAY)
    crashing = {"restart_seconds": 60.0, "receipt_seconds": measured["receipt_read_seconds"]}
    cases: list[tuple[str, np.ndarray, Plant]] = [
        ("nothing goes wrong", times, plain),
        ("stragglers", late, plain),
        ("a worker dies once a day", times, daily),
        ("a worker dies once an hour", times, replace(plain, death_rate=1 / HOUR)),
        ("the client dies once an hour", times, replace(plain, crash_rate=1 / HOUR, **crashing)),
        ("all of it, workers daily", late, replace(daily, crash_rate=1 / HOUR, **crashing)),
        *((f"window {n}", times, replace(plain, window=n)) for n in (1, 2, 8)),
        *((f"{n:,} workers", times, replace(plain, workers=n)) for n in (100, 4_000, 16_000)),
        *((f"units of {s} s", times * (s / 60), plain) for s in (2, 6, 600)),
        *(
            (f"client {f} times as slow", times, replace(plain, loop_seconds=f * plain.loop_seconds))
            for f in (4, 16)
        ),
    ]
    return [_case(*case) for case in cases]


def _case(name: str, times: np.ndarray, plant: Plant) -> dict[str, Any]:
    found = simulate(times.tolist(), plant)
    least = max(times.sum() / plant.workers, times.max())
    print(
        f"{name}: {found.makespan / HOUR:.3f} h (x{found.makespan / least:.3f} of the least), utilisation {found.utilisation:.3f}, "
        f"client busy {found.client_busy:.2f}, {found.redone:,} units begun again, at most {found.most_deaths} workers died under one",
        flush=True,
    )
    return {"case": name, "least": least, "utilisation": found.utilisation, **found._asdict()}


def plan_costs(folder: Path) -> dict[str, float]:
    """Of reading and tokenising text, one sample a line, by the difference of two sizes."""
    from pydoc_data.topics import topics

    from pipelines.resolve import prepare
    from schemas.capture import CaptureRequest

    texts = [
        line for text in topics.values() for part in text.split("\n\n") if (line := " ".join(part.split()))
    ]

    def plan(times: int) -> tuple[int, float]:
        file = folder / f"{times}.txt"
        file.write_text("".join(f"{n} {text}\n" for n in range(times) for text in texts))
        asked = overhead.request(overhead.FIRST, "lz4", 1)
        asked["data"] = {"source": {"kind": "text", "paths": [str(file)]}}
        request = CaptureRequest.model_validate(asked)
        taken = seconds(lambda: prepare(request, None))
        return prepare(request, None).n_tokens, taken

    plan(1)  # loads libraries and the network
    (few, short), (many, long) = plan(2), plan(10)
    return {"plan_tokens_per_second": (many - few) / (long - short)}


def held_bytes(make: Any) -> tuple[Any, int]:
    """What is made, and the memory that Python's objects in it take."""
    tracemalloc.start()
    made = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, size


def seconds(action: Any) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

"""How fast rows are expressed, and how time and memory grow with them: a part of `benchmarks.self_expression`.

    python -m benchmarks.self_expression --only speed

beside   ssc_omp, five entries, 10,000 x 500 random rows of length 1, beside the loop of `benchmarks.expression_exactness` on 300 of its
         rows, scaled to all; alternating in processes with one thread
growth   tsc, ssc_omp, elastic_net over 5,000 / 10,000 / 20,000 rows in five subspaces of dimension 5 of 50 features, with noise: seconds,
         the exponent of a line through their logarithms, and peak memory
large    50,000 such rows by two processes with one thread each, as `subspan run` has them; seconds count their start

Seconds are those of the stage alone, read from a store; the preparation comes before the clock. `search` is the share of the rate of a
square float64 product, measured in the same process after it, at which a look at all rows comes: 2 rows^2 width flops a look, and ssc_omp
takes five.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial as bind
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from benchmarks import protocol
from benchmarks.expression_exactness import pursued
from benchmarks.expression_store import Stored, opened, stored
from benchmarks.protocol import ROOT, Run
from tasks.drive import serial

FOLDER = ROOT / ".bench" / "self_expression"
ROWS, WIDTH, LOOP_ROWS, ENTRIES = 10_000, 500, 300, 5
GROWTH, LARGE, NARROW = (5_000, 10_000, 20_000), 50_000, 50
PARTS = ("beside", "growth", "large")
OPTIONS: dict[str, dict[str, Any]] = {"tsc": {}, "ssc_omp": {"entries": ENTRIES}, "elastic_net": {}}
LOOKS = {"tsc": 1, "ssc_omp": ENTRIES}


def speed(pairs: int, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Some parts, or all."""
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "beside": lambda: beside(pairs),
        "growth": growth,
        "large": large,
    }
    return {part: made[part]() for part in parts}


def beside(pairs: int) -> dict[str, Any]:
    """Ours and the loop, alternating."""
    drawn(ROWS, WIDTH)
    a, b = protocol.pairs(
        lambda: child("ssc_omp", ROWS, WIDTH), lambda: child("loop", ROWS, WIDTH), pairs, warm=False
    )
    b = [Run(*(seconds * ROWS / LOOP_ROWS for seconds in run[:2]), run.value) for run in b]
    found = {
        "time_ratio": protocol.ratio(b, a)._asdict(),
        "cpu_ratio": protocol.ratio(b, a, "cpu_seconds")._asdict(),
        "ours_seconds": float(np.median([run.seconds for run in a])),
        "theirs_seconds": float(np.median([run.seconds for run in b])),
        "search": protocol.summary([run.value["value"]["search"] for run in a])._asdict(),
        "load": protocol.environment(1)["load"],
    }
    print(f"beside: {found}", flush=True)
    return found


def growth() -> dict[str, Any]:
    """Of each method over the numbers of rows, with a plot."""
    made: dict[str, Any] = {method: {} for method in OPTIONS}
    for n in GROWTH:
        drawn(n, NARROW)
        for method in OPTIONS:
            found = child(method, n, NARROW).value
            made[method][str(n)] = figures(found)
            print(f"growth: {method} {n}: {made[method][str(n)]}", flush=True)
    for method, found in made.items():
        for clock in ("seconds", "cpu_seconds"):
            took = [found[str(n)][clock] for n in GROWTH]
            found[f"{clock} exponent"] = float(np.polyfit(np.log(GROWTH), np.log(took), 1)[0])
        for what in ("peak_mb", "peak_above_imports_mb"):
            last = [found[str(n)][what] for n in GROWTH[-2:]]
            found[f"{what} growth"] = last[1] / last[0]
        print(f"growth: {method}: { {k: v for k, v in found.items() if not k.isdigit()} }", flush=True)
    plot(made)
    return made


def large() -> dict[str, Any]:
    """Many rows by two processes."""
    drawn(LARGE, NARROW)
    made = {}
    for method in ("ssc_omp", "elastic_net"):
        found = figures(child(method, LARGE, NARROW, processes=2).value)
        made[method] = found | {"minutes": found["seconds"] / 60, "load": protocol.environment(2)["load"]}
        print(f"large: {method} {LARGE}: {made[method]}", flush=True)
    return made


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Of a child's report."""
    above = found["peak_bytes"] - found["base_bytes"]
    return {
        "seconds": found["value"]["seconds"],
        "cpu_seconds": found["value"]["cpu_seconds"],
        "peak_mb": found["peak_bytes"] / 1e6,
        "peak_above_imports_mb": above / 1e6,
        "search": found["value"].get("search"),
        "told": found["value"].get("told"),
    }


def drawn(n: int, width: int) -> Stored:
    """Rows of a store, made once: random ones of length 1 where they are wide, else in five subspaces of dimension 5 with noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, width))
    if width == NARROW:
        bases = np.linalg.qr(rng.standard_normal((5, width, 5)))[0].swapaxes(1, 2)
        inside = rng.standard_normal((n, 5))
        inside /= np.linalg.norm(inside, axis=1, keepdims=True)
        x = np.einsum("nd,ndf->nf", inside, bases[np.arange(n) % 5]) + 0.02 * x
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return stored(FOLDER / f"{n}x{width}", x)


def child(method: str, n: int, width: int, processes: int = 1) -> Run:
    """One run in a process of its own, with one thread. Seconds are those of the stage."""
    names = {"child": method, "rows": n, "width": width, "processes": processes}
    arguments = ["-m", "benchmarks.expression_speed", *(f"--{name}={value}" for name, value in names.items())]
    found = protocol.in_child(arguments, 1)
    return Run(found["value"]["seconds"], found["value"]["cpu_seconds"], found)


def main() -> None:
    """What runs in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", choices=["loop", *OPTIONS], required=True)
    for name in ("rows", "width", "processes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = opened(FOLDER / f"{options.rows}x{options.width}")
    work = bind(loop, options) if options.child == "loop" else bind(ours, options)
    protocol.report_child(bind(work, place))


def ours(options: argparse.Namespace, place: Stored) -> dict[str, Any]:
    """The stage, after its preparation; nothing of earlier runs is used."""
    for part in ("states", "artifacts"):
        shutil.rmtree(f"{place.root.url}/{part}", ignore_errors=True)
    preparation = place.stage("preparation", center=False)
    graph = place.stage(options.child, {"preparation": preparation.id}, **OPTIONS[options.child])
    place.made(preparation)
    if options.processes == 1:
        run = protocol.timed(lambda: place.made(graph, driver=serial))
    else:
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            run = protocol.timed(lambda: place.made(graph, driver=bind(in_pool, pool)))
    found = {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "told": dict(run.value.result)}
    if options.child not in LOOKS or options.processes > 1:
        return found
    rate = LOOKS[options.child] * 2 * options.rows**2 * options.width / run.cpu_seconds
    return found | {"search": rate / protocol.gemm_peak(np.float64, clock="cpu_seconds")}


def in_pool(
    pool: ProcessPoolExecutor,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    on_done: Callable[[Any], None],
) -> None:
    """Run all items in processes: see `tasks.drive.Driver`."""
    for done in pool.map(function, items):
        on_done(done)


def loop(options: argparse.Namespace, place: Stored) -> dict[str, Any]:
    """Row by row, some rows."""
    z = np.load(f"{place.root.url}/rows.npz")["x"].astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    run = protocol.timed(lambda: [pursued(z, i, ENTRIES, 1e-3) for i in range(LOOP_ROWS)])
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds}


def plot(made: dict[str, Any]) -> None:
    """Seconds over rows, both in logarithms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for method, found in made.items():
        label = f"{method}, exponent {found['cpu_seconds exponent']:.2f}"
        axes.loglog(GROWTH, [found[str(n)]["cpu_seconds"] for n in GROWTH], "o-", label=label)
    axes.set(xlabel="rows", ylabel="CPU seconds", title=f"{NARROW} features, one thread", xticks=GROWTH)
    axes.set_xticklabels([f"{n:,}" for n in GROWTH])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(protocol.RESULTS / "self_expression.png", dpi=120)


if __name__ == "__main__":
    main()

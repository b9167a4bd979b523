"""Time and memory of neural collapse with a vocabulary of classes, beside three passes of NumPy.

    python -m benchmarks.collapse [--pairs 5] [--threads 2] [--rows 200000] [--classes 30000] [--width 256]

Rows are read block by block from a file, as a store would give them; class sizes fall like 1 / rank. Ours is one pass for means and scatter
and one for nearest means; theirs is a pass for means, one for scatter and one for nearest means, as published code does it. Both end with
tr(W B^+) / classes and the share of rows whose nearest class mean is their own, and must agree. The state's bytes are those of the moments
that are merged and saved. Each run has a process of its own; results go to benchmarks/results/collapse.json.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks import protocol
from benchmarks.protocol import ROOT, Run
from tasks.numerics import class_moments, collapse

FOLDER = ROOT / ".bench" / "collapse"
BLOCK = 8192
OFFSET = 100.0


def main() -> None:
    """Alternate children with pinned threads, print the comparison, save it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("pairs", 5),
        ("threads", 2),
        ("rows", 200_000),
        ("classes", 30_000),
        ("width", 256),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", choices=["ours", "theirs"])
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(options.threads)
        work = {"ours": ours, "theirs": theirs}[options.child]
        protocol.report_child(lambda: work(options))
        return
    prepare(options)
    a, b = protocol.pairs(
        lambda: protocol.child_run(child_arguments("ours", options), options.threads),
        lambda: protocol.child_run(child_arguments("theirs", options), options.threads),
        options.pairs,
        warm=False,
    )
    key = f"{options.rows} rows, {options.classes} classes, {options.width} features"
    found = {key: compared(a, b), f"{key} environment": protocol.environment(options.threads)}
    print(json.dumps(found, indent=1))
    print(f"saved {protocol.save('collapse', protocol.saved('collapse') | found)}")


def child_arguments(child: str, options: argparse.Namespace) -> list[str]:
    """The command of a child."""
    names = ("threads", "rows", "classes", "width")
    return ["-m", "benchmarks.collapse", f"--child={child}", *(f"--{n}={getattr(options, n)}" for n in names)]


def place(options: argparse.Namespace) -> tuple[Any, Any]:
    """Where rows and codes lie."""
    stem = f"{options.rows}-{options.classes}-{options.width}"
    return FOLDER / f"rows-{stem}.npy", FOLDER / f"codes-{stem}.npy"


def prepare(options: argparse.Namespace) -> None:
    """Rows around their class's centre, far from the origin; made once."""
    rows, codes = place(options)
    if codes.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, options.classes + 1)
    code = rng.choice(options.classes, options.rows, p=share / share.sum())
    centre = rng.standard_normal((options.classes, options.width)).astype(np.float32)
    out = np.lib.format.open_memmap(rows, "w+", np.float32, (options.rows, options.width))
    for first in range(0, options.rows, BLOCK):
        some = code[first : first + BLOCK]
        out[first : first + BLOCK] = centre[some] + rng.standard_normal((len(some), options.width)) + OFFSET
    out.flush()
    np.save(codes, code)


def blocks(options: argparse.Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows with their codes, each block in memory of its own."""
    rows, codes = place(options)
    code, start = np.load(codes), np.load(rows, mmap_mode="r").offset
    for first in range(0, options.rows, BLOCK):
        some = code[first : first + BLOCK]
        count = len(some) * options.width
        values = np.fromfile(rows, np.float32, count, offset=start + 4 * first * options.width)
        yield values.reshape(-1, options.width), some


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Moments merged block by block, then nearest means."""
    state = class_moments.empty(options.width)
    for x, code in blocks(options):
        state = class_moments.merge(state, class_moments.partial(torch.from_numpy(x), torch.from_numpy(code)))
    classes = len(state["code"])
    across = collapse.between(state["mean"], torch.full_like(state["w"], 1 / classes))
    within = class_moments.scatter(state) / float(class_moments.degrees(state).sum())
    right = 0
    for x, code in blocks(options):
        found = class_moments.nearest(torch.from_numpy(x), state["mean"])
        right += int((state["code"][found] == torch.from_numpy(code)).sum())
    return {
        "nc1": collapse.within_over_between(within, across, across.rank) / classes,
        "nearest": right / options.rows,
        "state_bytes": sum(t.numel() * t.element_size() for t in state.values()),
    }


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """Means, scatter about them, nearest means: a pass each."""
    total, n = np.zeros((options.classes, options.width)), np.zeros(options.classes)
    for x, code in blocks(options):
        np.add.at(total, code, x)
        n += np.bincount(code, minlength=options.classes)
    there = n > 0
    mean = np.divide(total, n[:, None], out=np.zeros_like(total), where=there[:, None])
    within = np.zeros((options.width, options.width))
    for x, code in blocks(options):
        z = x - mean[code]
        within += z.T @ z
    middle = mean[there] - mean[there].mean(0)
    across = middle.T @ middle / there.sum()
    centre = mean[there].mean(0)
    near, codes, right = mean[there] - centre, np.flatnonzero(there), 0
    square = (near**2).sum(1)
    for x, code in blocks(options):
        for first in range(0, len(x), 1024):
            apart = square - 2 * (x[first : first + 1024] - centre) @ near.T
            right += int((codes[apart.argmin(1)] == code[first : first + 1024]).sum())
    pooled = within / (n.sum() - there.sum())
    return {
        "nc1": float(np.trace(pooled @ np.linalg.pinv(across)) / there.sum()),
        "nearest": right / options.rows,
    }


def compared(a: list[Run], b: list[Run]) -> dict[str, Any]:
    """Ratios of time, memory above the imports, and how far results differ."""
    values = [run[-1].value["value"] for run in (a, b)]
    above = [
        float(np.median([run.value["peak_bytes"] - run.value["base_bytes"] for run in runs])) / 1e6
        for runs in (a, b)
    ]
    return {
        "time_ratio": protocol.ratio(b, a)._asdict(),
        "cpu_ratio": protocol.ratio(b, a, "cpu_seconds")._asdict(),
        "ours_seconds": float(np.median([run.seconds for run in a])),
        "theirs_seconds": float(np.median([run.seconds for run in b])),
        "ours_memory_mb": above[0],
        "theirs_memory_mb": above[1],
        "state_mb": values[0]["state_bytes"] / 1e6,
        "nc1": values[0]["nc1"],
        "nc1_difference": abs(values[0]["nc1"] / values[1]["nc1"] - 1),
        "nearest": values[0]["nearest"],
        "nearest_difference": abs(values[0]["nearest"] - values[1]["nearest"]),
    }


if __name__ == "__main__":
    main()

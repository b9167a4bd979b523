"""How fast neighbours and intrinsic dimension are found, and how exactly, beside scikit-dimension.

    python -m benchmarks.dimension [--pairs 7] [--threads 1] [--only knn,skdim,accuracy] [--rows 20000] [--width 384] [--k 20]
        [--data gaussian-10|filling]

knn       rate of the distances of one exact search over that of a square matrix product, measured just before and after
skdim     each measure with a search of its own, and all measures from one search; alternating processes, the same float32 rows
accuracy  the same measures on five manifolds, turned into the full width, in float64: relative differences of both

Products count rows^2 width flops, as a set against itself takes each once, and beside that 2 rows^2 width ("twice"), as a search row by
row takes them; the search's other work counts nothing. Two measures are defined otherwise there, so that only
times compare: the mean of `MOM` takes the k-th distance in, and `GRIDE` leaves out ratios far above the median. Rows of ten directions
are searched along these, rows that fill the width with all features. Results go to
benchmarks/results/dimension.json, unless sizes are others than the published ones.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.pca import CLOCKS, row, share_of_peak
from benchmarks.protocol import ROOT, Run, Summary
from tasks.numerics import intrinsic_dimension as numerics
from tasks.numerics.neighbours import nearest, none_yet

FOLDER = ROOT / ".bench" / "dimension"
PEER = ("scikit-dimension==0.5.0",)
ROWS, WIDTH, K, DISCARD = 20_000, 384, 20, 0.1
NEEDED = {"TwoNN": 2, "TwoNN censored": 2, "GRIDE": 2}
"""Neighbours of these, on both sides; the others take k."""
DATA = {"gaussian-10": "", "filling": " filling"}
"""Rows on ten directions, and rows that fill the whole width alike."""
SAME = ("MLE", "MLE mean", "TwoNN", "TwoNN censored")
"""Measures that are defined alike on both sides."""


def main() -> None:
    """Run the asked parts in children with pinned threads, print a table, save the numbers."""
    options = parsed()
    if options.child:
        torch.set_num_threads(options.threads)
        run_child(options)
        return
    published = (options.rows, options.width, options.k) == (ROWS, WIDTH, K)
    results = protocol.saved("dimension") if published else {}
    for part in options.only.split(","):
        found = {"knn": knn, "skdim": skdim, "accuracy": accuracy}[part](options)
        name = f"{part}{DATA[options.data]}"
        results[name] = found
        results[f"{name} environment"] = protocol.environment(options.threads)
        print(json.dumps({name: found}, indent=1), flush=True)
    print(table(results))
    if published:
        print(f"saved {protocol.save('dimension', results)}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="knn,skdim,accuracy")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--k", type=int, default=K)
    parser.add_argument("--data", choices=sorted(DATA), default="gaussian-10")
    parser.add_argument("--child", choices=["knn", "ours"])
    parser.add_argument("--path", type=Path)
    return parser.parse_args()


def run_child(options: argparse.Namespace) -> None:
    """What runs in a process of its own."""
    if options.child == "knn":
        protocol.report_child(lambda: shares(options))
    else:
        protocol.report_child(lambda: ours(options.path, options.k))


def child(name: str, options: argparse.Namespace, path: Path) -> list[str]:
    """The command of a child."""
    sizes = {
        "pairs": options.pairs,
        "threads": options.threads,
        "rows": options.rows,
        "width": options.width,
        "data": options.data,
    }
    named = sizes | {"k": options.k, "path": path}
    return ["-m", "benchmarks.dimension", "--child", name, *(f"--{key}={v}" for key, v in named.items())]


def knn(options: argparse.Namespace) -> Any:
    """Share of the peak, in a child."""
    path = rows(options.data, options, np.float32)
    return protocol.in_child(child("knn", options, path), options.threads)["value"]


def shares(options: argparse.Namespace) -> dict[str, Any]:
    """Of the rate of a square product, by both clocks."""
    x = torch.from_numpy(np.load(options.path))
    work, once = partial(search, x, options.k), len(x) ** 2 * x.shape[1]
    search(x[:2000], options.k)
    found = {
        clock: [share_of_peak(work, once, np.float32, clock) for _ in range(options.pairs)]
        for clock in CLOCKS
    }
    return {
        name: {clock: protocol.summary([times * s for s in found[clock]])._asdict() for clock in CLOCKS}
        for name, times in (("once", 1), ("twice", 2))
    }


def search(x: Tensor, k: int) -> Tensor:
    """Distances to the k nearest rows."""
    index = torch.arange(len(x))
    return nearest(none_yet(len(x), k), x, index, x, index).distance


def ours(path: Path, k: int) -> dict[str, Any]:
    """Time and value of each measure with a search of its own, and of all from one."""
    x = torch.from_numpy(np.load(path))
    one = {
        name: protocol.timed(
            lambda measure=measure, name=name: measure(search(x, NEEDED.get(name, k)))  # type: ignore[misc]
        )._asdict()
        for name, measure in measures().items()
    }
    together = protocol.timed(lambda: all_of(search(x, k)))
    return one | {"all": together._asdict()}


def all_of(distance: Tensor) -> dict[str, float]:
    """Every measure from one search."""
    return {name: measure(distance) for name, measure in measures().items()}


def measures() -> dict[str, Callable[[Tensor], float]]:
    """From distances, named as the peer's."""
    return {
        "MLE": lambda r: float(numerics.mle(sums(r))[-1]),
        "MLE mean": lambda r: (
            numerics.levina_bickel(sums(r)) * (r.shape[1] - 1) / (r.shape[1] - 2)
        ),  # theirs is k - 1 over the sum
        "TwoNN": lambda r: numerics.line(torch.log(r[:, 1] / r[:, 0]), DISCARD),
        "TwoNN censored": lambda r: numerics.censored(torch.log(r[:, 1] / r[:, 0]), DISCARD),
        "GRIDE": lambda r: numerics.twonn(sums(r)),
        "MOM": lambda r: float(numerics.local(r, "moments").mean()),
    }


def sums(distance: Tensor) -> numerics.Sums:
    """Over all rows."""
    used = distance[numerics.usable(distance)]
    found = numerics.sums(used, torch.zeros(len(used), dtype=torch.int64), 1)
    return {name: values[0] for name, values in found.items()}


def skdim(options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of time, theirs over ours, for each measure and for all."""
    python = protocol.peer_python("skdim", PEER)
    path = rows(options.data, options, np.float32)
    theirs = ["-m", "benchmarks.skdim_peer", str(path), f"--k={options.k}"]
    a, b = protocol.pairs(
        lambda: protocol.child_run(child("ours", options, path), options.threads),
        lambda: protocol.child_run(theirs, options.threads, python),
        options.pairs,
        warm=False,
    )
    mine, other = ([run.value["value"] for run in runs] for runs in (a, b))
    found = {name: compared([m[name] for m in mine], [o[name] for o in other]) for name in measures()}
    every = [
        {"seconds": sum(o[n]["seconds"] for n in o), "cpu_seconds": sum(o[n]["cpu_seconds"] for n in o)}
        for o in other
    ]
    nothing = {"value": None}
    return found | {"all": compared([m["all"] | nothing for m in mine], [e | nothing for e in every])}


def compared(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios and values."""
    a, b = ([Run(r["seconds"], r["cpu_seconds"], r["value"]) for r in runs] for runs in (mine, theirs))
    return {
        "time_ratio": protocol.ratio(b, a)._asdict(),
        "cpu_ratio": protocol.ratio(b, a, "cpu_seconds")._asdict(),
        "ours_seconds": float(np.median([run.seconds for run in a])),
        "theirs_seconds": float(np.median([run.seconds for run in b])),
        "ours": a[-1].value,
        "theirs": b[-1].value,
    }


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Relative differences of measures that are defined alike, on each manifold."""
    python, found = protocol.peer_python("skdim", PEER), {}
    few = argparse.Namespace(**vars(options) | {"rows": min(options.rows, 3000)})
    for name in manifolds(2):
        path = rows(name, few, np.float64)
        theirs = protocol.in_child(
            ["-m", "benchmarks.skdim_peer", str(path), f"--k={options.k}"], options.threads, python
        )["value"]
        mine = all_of(search(torch.from_numpy(np.load(path)), options.k))
        found[name] = {
            n: {
                "ours": mine[n],
                "theirs": theirs[n]["value"],
                "difference": abs(mine[n] / theirs[n]["value"] - 1),
            }
            for n in mine
        }
    return found


def manifolds(n: int) -> dict[str, np.ndarray]:
    """Rows of known dimension."""
    rng = np.random.default_rng(0)
    ball = rng.standard_normal((n, 11))
    turn, height = 1.5 * np.pi * (1 + 2 * rng.random(n)), 21 * rng.random(n)
    a, b = 2 * np.pi * rng.random((2, n))
    return {
        "plane-2": rng.standard_normal((n, 2)),
        "gaussian-10": rng.standard_normal((n, 10)),
        "sphere-10": ball / np.linalg.norm(ball, axis=1, keepdims=True),
        "swiss-roll-2": np.stack([turn * np.cos(turn), height, turn * np.sin(turn)], 1),
        "torus-2": np.stack([(3 + np.cos(b)) * np.cos(a), (3 + np.cos(b)) * np.sin(a), np.sin(b)], 1),
    }


def rows(name: str, options: argparse.Namespace, dtype: type) -> Path:
    """A file with a manifold turned into the full width; made once."""
    path = FOLDER / f"{name}-{options.rows}x{options.width}-{np.dtype(dtype).name}.npy"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        filling = np.random.default_rng(2).standard_normal((options.rows, options.width))
        x = filling if name == "filling" else manifolds(options.rows)[name]
        turn = np.linalg.qr(np.random.default_rng(1).standard_normal((options.width, options.width)))[0]
        np.save(path, (x @ turn[: x.shape[1]]).astype(dtype))
    return path


def table(results: dict[str, Any]) -> str:
    """Markdown rows."""
    heads = ("what", "ratio by the wall", "by CPU seconds", "ours", "theirs")
    lines = [row(*heads), row(*["---"] * len(heads))]
    for data, ending in DATA.items():
        lines += rows_of(results, data, ending)
    for name, found in results.get("accuracy", {}).items():
        worst = max(found[n]["difference"] for n in SAME)
        lines.append(row(f"{name}: largest relative difference", "", "", f"{worst:.1e}", ""))
    return "\n".join(lines)


def rows_of(results: dict[str, Any], data: str, ending: str) -> list[str]:
    """Of one set of rows."""
    lines = []
    for name, found in results.get(f"knn{ending}", {}).items():
        shown = (Summary(**found[clock]) for clock in CLOCKS)
        lines.append(row(f"{data}: neighbours, share of GEMM peak, products counted {name}", *shown, "", ""))
    for name, found in results.get(f"skdim{ending}", {}).items():
        ratios = [Summary(**found[kind]) for kind in ("time_ratio", "cpu_ratio")]
        values = [f"{found[side]:.4f}" if found[side] else "" for side in ("ours", "theirs")]
        lines.append(row(f"{data}: scikit-dimension {name} / ours", *ratios, *values))
    return lines


if __name__ == "__main__":
    main()

"""A round of K subspaces over the rows of a store, beside plain reading and the products that it cannot do without, and a NumPy loop.

    python -m benchmarks.k_subspaces [--pairs 3] [--rows 100000] [--times 10] [--clusters 8] [--dimension 4] [--width 384]

Rows are Gaussian with variances 1 / j, so that rounds go on, float32, in a sealed store of shards of 8,192 rows, made once below .bench.
One thread.

read      every shard of the site through the engine's own reader
products  residuals against the subspaces and one symmetric product of each cluster's rows, from memory, of the same shapes and precision
ours      the stage with a fixed number of rounds; a round is the difference between many rounds and few, which leaves out starts
numpy     a plain loop over the same rows held in memory as float64: a mask for each cluster, `z.T @ z`, `eigh`

`round over the limit` is ours over reading + products. Memory is the peak above the imports, for the rows and for `--times` as many.
Each run has a process of its own. Results go to benchmarks/results/k_subspaces.json.
"""

import argparse
import json
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import protocol
from benchmarks.protocol import ROOT
from schemas.stage import RowsRef
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.engine.source import SiteSource
from tasks.numerics import blas, k_subspaces
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

SHARD, FEW, MANY = 8192, 2, 6


def main() -> None:
    """Make stores once, then alternate; print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {
        "pairs": 3,
        "rows": 100_000,
        "times": 10,
        "clusters": 8,
        "dimension": 4,
        "width": 384,
        "rounds": MANY,
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", choices=["read", "products", "ours", "numpy"])
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(1)
        work = {"read": read, "products": products, "ours": ours, "numpy": theirs}[options.child]
        protocol.report_child(bind(work, options))
        return
    capture(options)
    runs = [measured(options) for _ in range(options.pairs)]
    key = f"{options.rows} rows, {options.clusters} clusters of {options.dimension}, {options.width} features"
    found: dict[str, Any] = {"runs": runs, "environment": protocol.environment(1)}
    for name in (key for key in runs[0] if " over " in key):
        found[name] = protocol.summary([run[name] for run in runs])._asdict()
    if options.times > 1:
        more = argparse.Namespace(**(vars(options) | {"rows": options.rows * options.times}))
        capture(more)
        few, many = (child("ours", o, FEW) for o in (options, more))
        found |= {
            "peak MB": (few["peak_bytes"] - few["base_bytes"]) / 1e6,
            f"peak MB of {options.times} times": (many["peak_bytes"] - many["base_bytes"]) / 1e6,
        }
    print(json.dumps(found, indent=1))
    print(f"saved {protocol.save('k_subspaces', protocol.saved('k_subspaces') | {key: found})}")


def child(name: str, options: argparse.Namespace, rounds: int = MANY) -> dict[str, Any]:
    """One run in a process of its own."""
    names = ("rows", "clusters", "dimension", "width")
    given = [f"--{n}={getattr(options, n)}" for n in names]
    return protocol.in_child(
        ["-m", "benchmarks.k_subspaces", f"--child={name}", f"--rounds={rounds}", *given], 1
    )


def measured(options: argparse.Namespace) -> dict[str, float]:
    """All parts, one after the other."""
    read_, products_, few, many, numpy_ = (
        child("read", options),
        child("products", options),
        child("ours", options, FEW),
        child("ours", options, MANY),
        child("numpy", options),
    )
    rounds, found = many["value"][0] - few["value"][0], {}
    for clock in ("seconds", "cpu_seconds"):
        here, loop = (many[clock] - few[clock]) / rounds, numpy_["value"][clock]
        limit = read_[clock] + products_["value"][clock]
        found |= {
            f"read {clock}": read_[clock],
            f"products {clock}": products_["value"][clock],
            f"round {clock}": here,
            f"numpy round {clock}": loop,
            f"round over the limit, {clock}": here / limit,
            f"numpy round over ours, {clock}": loop / here,
        }
    return found


def place(options: argparse.Namespace) -> Location:
    """Where the store lies."""
    folder: Path = ROOT / ".bench" / "k_subspaces" / f"{options.rows}-{options.width}"
    folder.mkdir(parents=True, exist_ok=True)
    return Location(str(folder))


def capture(options: argparse.Namespace) -> None:
    """A store with the rows, unless it is there."""
    root = place(options)
    if root.exists("ref.json"):
        return
    rng = np.random.default_rng(0)
    rows = np.empty((options.rows, options.width), np.float32)
    scale = (1 / np.sqrt(np.arange(1, options.width + 1))).astype(np.float32)
    for first in range(0, options.rows, SHARD):
        part = rows[first : first + SHARD]
        part[:] = rng.standard_normal(part.shape, np.float32) * scale
    spec = make_capture(root, {"a": rows}, shard_rows=SHARD, chunk_rows=SHARD // 4)
    root.write("ref.json", rows_ref(spec).model_dump_json().encode())


def opened(options: argparse.Namespace) -> tuple[Location, RowsRef]:
    """The store and its site."""
    root = place(options)
    return root, RowsRef.model_validate_json(root.read("ref.json"))


def read(options: argparse.Namespace) -> int:
    """Every shard once."""
    root, ref = opened(options)
    source, total = SiteSource(root, [ref]), 0
    space = source.parts[0].space
    for shard in range(space.n_shards):
        total += len(source.part_rows(0, *space.shard_bounds(shard)).index)
    return total


def products(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one round's products."""
    x = torch.randn(SHARD, options.width).double()
    columns = torch.randn(options.clusters * (options.dimension + 1), options.width).double()
    state = torch.zeros(options.clusters, options.width, options.width).double()
    parts = [part.contiguous() for part in x.chunk(options.clusters)]

    def once() -> None:
        for rows in x.split(k_subspaces.TILE):
            _ = rows @ columns.T
        for g, rows in zip(state, parts, strict=True):
            blas.add_product(g, rows)

    once()
    run = protocol.timed(lambda: [once() for _ in range(options.rows // SHARD)])
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds}


def ours(options: argparse.Namespace) -> tuple[int, float]:
    """The stage, with so many rounds: how many it took, and the mean squared residual."""
    root, ref = opened(options)
    stage = stage_of(
        "clustering.k_subspaces", {"x": ref}, clusters=options.clusters, dimension=options.dimension,
        rounds=options.rounds, tolerance=0.0, starts=1, start="seeding", start_rows=500,
    )  # fmt: skip
    root.delete("artifacts", recursive=True)
    ((_, made),) = run_stages(root, [stage], serial).items()
    cost = artifact_arrays(root, made.id)["cost"]
    return len(cost), float(cost[-1])


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one round of a plain loop, rows already in memory."""
    root, ref = opened(options)
    source = SiteSource(root, [ref])
    space = source.parts[0].space
    pieces = [source.part_rows(0, *space.shard_bounds(s)).values[0] for s in range(space.n_shards)]
    x = np.concatenate(pieces).astype(np.float64)
    rng = np.random.default_rng(0)
    mean = x[rng.integers(0, len(x), options.clusters)]
    basis = np.linalg.qr(rng.standard_normal((options.clusters, options.width, options.dimension)))[0]

    def once() -> None:
        left = np.stack(
            [((x - m) ** 2).sum(1) - (((x - m) @ b) ** 2).sum(1) for m, b in zip(mean, basis, strict=True)]
        )
        label = left.argmin(0)
        for k in range(options.clusters):
            z = x[label == k]
            z = z - z.mean(0)
            np.linalg.eigh(z.T @ z)

    run = protocol.timed(once)
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds}


if __name__ == "__main__":
    main()

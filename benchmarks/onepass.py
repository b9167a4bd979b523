"""One read of a store gives every measure: 24 sites of width 512, each with 50,000 rows, by two threads.

    python -m benchmarks.onepass [--pairs 3] [--rows 50000]

read      every shard of every site through the engine's own reader, two threads
products  one symmetric product of as many rows, in memory, two threads: what a covariance costs at least
bare      both in a loop without an engine: each shard of a site is read while the one before is multiplied, two threads
decompose as many eigendecompositions of random covariances as the second set takes for its measures and their intervals, two threads
moments   stages over the sealed capture: spectrum.summary and spectrum.pca (means, covariances, participation ratios)
all       also geometry.neural_collapse (class statistics) and geometry.uniformity (entropy and distance); as few groups for the
          intervals as they take, since each costs decompositions and no reading

The limit is max(wall of reading, (CPU of reading + CPU of as many products as the set takes) / threads). Cores that share their
units, as those of most virtual machines do, cannot reach it, as CPU seconds grow when both are busy with different work; the bare
loop says what they can. The limit knows no decompositions, which no number of rows makes more of: the second set is also compared with the
limit that has them. How often each shard was read is counted. The capture is made by a real
run, once, below .bench. Results go to benchmarks/results/onepass.json.
"""

import argparse
import json
import shutil
from functools import partial as bind
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import protocol
from benchmarks.protocol import ROOT
from pipelines.serial import run_serial
from schemas.run import RunSpec
from schemas.stage import ResolvedStage, RowsRef
from tasks.drive import Threads, results
from tasks.engine import run_stages
from tasks.engine.ahead import ahead
from tasks.engine.source import SiteSource
from tasks.methods.contract import load_method
from tasks.numerics import moments
from tasks.store.location import Location

SITES, WIDTH, THREADS, CLASSES = 24, 512, 2, 10
SETS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "moments": (("spectrum.summary", {}), ("spectrum.pca", {})),
    "all": (
        ("spectrum.summary", {}),
        ("spectrum.pca", {}),
        ("geometry.neural_collapse", {"nearest": False, "groups": 2}),
        ("geometry.uniformity", {"groups": 5}),
    ),
}
PRODUCTS = {"moments": 1, "all": 3}
"""Symmetric products of all rows that a set takes: of rows, of rows inside classes, of directions."""
EIGH, EIGVALSH = 1 + 3, 2 * 6
"""Decompositions of a site by the second set: of the covariance, and of that of classes for all rows and two groups; values alone of second
moments and covariances of directions, for all rows and five groups."""


class Stack(nn.Module):
    """Linear layers with tanh between."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(SITES))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def stack() -> nn.Module:
    """The network."""
    return Stack()


class Rows(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Seeded vectors with ten classes."""

    def __init__(self, n: int) -> None:
        self.n, self.fingerprint = n, f"benchmark-rows-{n}"
        self.centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = torch.randn(WIDTH, generator=torch.Generator().manual_seed(index + 2))
        return 2 * drawn + self.centres[index % CLASSES], index % CLASSES


def rows(n: int) -> Rows:
    """The data."""
    return Rows(n)


def main() -> None:
    """Capture once, then alternate; print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--child", choices=["read", "products", "bare", "decompose", *SETS])
    options = parser.parse_args()
    if options.child:
        made = {"read": read, "products": products, "bare": bare, "decompose": decompose}
        made |= {name: bind(ours, name) for name in SETS}
        protocol.report_child(bind(made[options.child], options.rows))
        return
    capture(options.rows)
    found = [measured(options.rows) for _ in range(options.pairs)]
    results_: dict[str, Any] = {"runs": found, "environment": protocol.environment(THREADS)}
    for ratio in (name for name in found[0] if " over the " in name):
        results_[ratio] = protocol.summary([f[ratio] for f in found])._asdict()
    print(json.dumps(results_, indent=1))
    print(f"saved {protocol.save('onepass', results_)}")


def measured(n: int) -> dict[str, float]:
    """One round of all parts."""
    parts = {
        part: protocol.in_child(["-m", "benchmarks.onepass", "--child", part, f"--rows={n}"], 1)
        for part in ("read", "products", "bare", "decompose", *SETS)
    }
    read, product = parts["read"], parts["products"]["cpu_seconds"]
    found = {f"{part} {clock}": parts[part][clock] for part in parts for clock in ("seconds", "cpu_seconds")}
    found["moments over the bare loop"] = parts["moments"]["seconds"] / parts["bare"]["seconds"]
    for name, times in PRODUCTS.items():
        limit = max(read["seconds"], (read["cpu_seconds"] + times * product) / THREADS)
        found |= {
            f"{name} limit": limit,
            f"{name} over the limit": parts[name]["seconds"] / limit,
            f"{name} peak MB": parts[name]["peak_bytes"] / 1e6,
            f"{name} reads of a shard": parts[name]["value"],
        }
    decomposed = found["all limit"] + parts["decompose"]["cpu_seconds"] / THREADS
    return found | {"all over the limit with decompositions": parts["all"]["seconds"] / decomposed}


def folder(n: int) -> Path:
    """Where the capture lies."""
    return ROOT / ".bench" / "onepass" / str(n)


def capture(n: int) -> None:
    """Make the capture by a real run, unless it is there; a run that is there computes nothing."""
    run_serial(
        RunSpec.model_validate(
            {
                "name": "onepass",
                "root": str(folder(n)),
                "captures": {
                    "rows": {
                        "model": {"kind": "factory", "factory": "benchmarks.onepass:stack"},
                        "data": {
                            "source": {
                                "kind": "factory",
                                "factory": "benchmarks.onepass:rows",
                                "arguments": {"n": n},
                            }
                        },
                        "sites": ["layers.*"],
                        "batch_samples": 512,
                        "store": {"shard_rows": 2048},  # what rows of tokens would have
                    }
                },
                "execution": {"device": "cpu", "cluster": "threads", "workers": THREADS},
                "report": None,
            }
        )
    )


def opened(n: int) -> tuple[Location, list[RowsRef]]:
    """The root and every site of its capture."""
    root = Location(str(folder(n)))
    name = json.loads(root.read("names/rows.json"))["capture"]
    return root, [RowsRef(capture=name, digest=name, site=f"layers.{k}:out:0") for k in range(SITES)]


def read(n: int) -> float:
    """Every shard of every site, once."""
    root, refs = opened(n)
    with Threads(THREADS) as driver:
        return float(sum(results(driver, bind(read_site, root), refs)))


def read_site(root: Location, ref: RowsRef) -> int:
    """The rows of a site, shard by shard."""
    source, total = SiteSource(root, [ref]), 0
    space = source.parts[0].space
    for shard in range(space.n_shards):
        total += len(source.part_rows(0, *space.shard_bounds(shard)).index)
    return total


def bare(n: int) -> float:
    """What reading and one product of each shard take at least together."""
    root, refs = opened(n)
    with Threads(THREADS) as driver:
        return float(sum(results(driver, bind(bare_site, root), refs)))


def bare_site(root: Location, ref: RowsRef) -> float:
    """The rows of a site, shard by shard, each multiplied while the next is read."""
    source = SiteSource(root, [ref])
    space = source.parts[0].space
    reads = [bind(source.part_rows, 0, *space.shard_bounds(shard)) for shard in range(space.n_shards)]
    return sum(float(moments.partial(torch.from_numpy(rows.values[0]))["n"]) for rows in ahead(reads))


def products(n: int) -> float:
    """The products of a covariance, for every site, all threads busy: cores that share their units count as they compute."""
    x = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))
    with Threads(THREADS) as driver:
        return float(sum(results(driver, bind(product, x), range(SITES))))


def product(x: Tensor, site: int) -> float:
    """The moments of all rows."""
    return float(moments.partial(x)["n"])


def decompose(n: int) -> float:
    """The decompositions of the second set, for every site, all threads busy."""
    x = torch.randn(min(n, 4 * WIDTH), WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with Threads(THREADS) as driver:
        return float(sum(results(driver, bind(decompose_site, x.T @ x), range(SITES))))


def decompose_site(covariance: Tensor, site: int) -> float:
    """Of one site."""
    values = [torch.linalg.eigh(covariance).eigenvalues for _ in range(EIGH)]
    values += [torch.linalg.eigvalsh(covariance) for _ in range(EIGVALSH)]
    return float(sum(v[-1] for v in values))


def ours(name: str, n: int) -> float:
    """The stages of a set; returns how often a shard of a site was read."""
    root, refs = opened(n)
    for part in ("states", "artifacts"):
        shutil.rmtree(folder(n) / part, ignore_errors=True)
    stages = [stage(method, options, ref) for ref in refs for method, options in SETS[name]]
    read_shards = 0

    def progress(done: int, total: int, shards: int) -> None:
        nonlocal read_shards
        read_shards = shards

    with Threads(THREADS) as driver:
        run_stages(root, stages, driver, on_progress=progress)
    shards = SiteSource(root, [refs[0]]).parts[0].space.n_shards * SITES
    return read_shards / shards


def stage(method: str, options: dict[str, Any], ref: RowsRef) -> ResolvedStage:
    """A stage at a site."""
    module = load_method(method)
    config = module.Config.model_validate(options).model_dump(mode="json")
    return ResolvedStage(method=method, version=module.VERSION, config=config, rows={"x": (ref,)})


if __name__ == "__main__":
    main()

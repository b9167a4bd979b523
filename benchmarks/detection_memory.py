"""Detectors over many rows of a store: peak memory for ten times the rows, and seconds beside plain reading and the products.

    python -m benchmarks.detection_memory [--pairs 3] [--rows 100000] [--times 10] [--held 20000] [--normal 4000]

Rows of 512 features, Gaussian with variances 1 / j, float32, in a capture made once by a real run below .bench; `held` others calibrate.
One thread, one process for each run.

fit         `spectrum.pca` and `anomaly.reference`, which share one pass
residual    `anomaly.residual` over all rows, with the components that hold 0.9 of the variance
distance    `anomaly.mahalanobis` over all rows
calibrated  `anomaly.calibrated` of the residuals, by those of the held rows
neighbours  `anomaly.neighbours` over all rows, against `normal` of the held rows, which are kept all: exact, and compared with NumPy
read        every shard through the engine's own reader
products    for `residual`: the two float64 products of a row with the components, from memory, in tiles as the method takes them

`over the limit` is a stage over reading and products. Memory is the peak of the process; the rows of the larger capture never lie in memory
together. Results go to benchmarks/results/detection_memory.json.
"""

import argparse
import json
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import protocol
from benchmarks.protocol import ROOT
from pipelines.serial import run_serial
from schemas.run import RunSpec
from schemas.stage import ResolvedStage, RowsRef
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.engine.source import SiteSource
from tasks.extract.allocator import keep_memory
from tasks.methods.anomaly_scores import TILE_ROWS
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import stage_of

WIDTH, ENERGY, K = 512, 0.9, 10
PARTS = ("fit", "residual", "distance", "calibrated", "neighbours")
CHECKED = 500
"""Rows whose neighbours NumPy finds too."""


class Rows(torch.utils.data.Dataset[Tensor]):
    """Rows that are drawn when they are asked for."""

    def __init__(self, n: int, first: int) -> None:
        self.n, self.first = n, first
        self.scale = 1 / torch.arange(1, WIDTH + 1).sqrt()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.first + index)
        return torch.randn(WIDTH, generator=generator) * self.scale


def drawn(n: int, first: int) -> Rows:
    """The data of a capture."""
    return Rows(n, first)


def through() -> nn.Module:
    """The network whose output is its input."""
    return nn.Sequential(nn.Identity())


def main() -> None:
    """Make captures once, then measure; print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {"pairs": 3, "rows": 100_000, "times": 10, "held": 20_000, "normal": 4000}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", choices=["capture", "ours", "read", "products"])
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(1)
        work = {"capture": capture, "ours": ours, "read": read, "products": products}[options.child]
        protocol.report_child(bind(work, options))
        return
    many = argparse.Namespace(**(vars(options) | {"rows": options.rows * options.times}))
    found: dict[str, Any] = {"environment": protocol.environment(1)}
    for one in (options, many):
        child("capture", one)
        runs = [measured(one) for _ in range(options.pairs if one is options else 1)]
        found[f"{one.rows} rows"] = {
            key: protocol.summary([r[key] for r in runs])._asdict() for key in runs[0]
        }
        print(one.rows, json.dumps(runs, indent=1), flush=True)
    peaks = [found[f"{one.rows} rows"]["peak MB"]["median"] for one in (options, many)]
    found["peak of more rows over fewer"] = peaks[1] / peaks[0]
    print(json.dumps(found, indent=1))
    print(f"saved {protocol.save('detection_memory', found)}")


def child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    given = [f"--{n}={getattr(options, n)}" for n in ("rows", "held", "normal")]
    return protocol.in_child(["-m", "benchmarks.detection_memory", f"--child={name}", *given], 1)


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Ours, reading and products, one after the other."""
    made, read_, products_ = (child(name, options) for name in ("ours", "read", "products"))
    found = {f"{name} seconds": value for name, value in made["value"].items()}
    limit = read_["seconds"] + products_["value"]
    return found | {
        "peak MB": made["peak_bytes"] / 1e6,
        "base MB": made["base_bytes"] / 1e6,
        "read seconds": read_["seconds"],
        "products seconds": products_["value"],
        "residual rows per second": options.rows / made["value"]["residual"],
        "residual over the limit": made["value"]["residual"] / limit,
        "neighbours, share of the float32 product's rate": made["value"]["product"]
        / made["value"]["neighbours"],
    }


def place(options: argparse.Namespace) -> Location:
    """Where the captures lie."""
    folder: Path = ROOT / ".bench" / "detection_memory" / f"{options.rows}-{options.held}"
    folder.mkdir(parents=True, exist_ok=True)
    return Location(str(folder))


def capture(options: argparse.Namespace) -> None:
    """Rows and held rows, unless they are there."""
    run_serial(
        RunSpec.model_validate(
            {
                "name": "detection",
                "root": place(options).url,
                "captures": {
                    "rows": _captured(options.rows, 0),
                    "held": _captured(options.held, 1 << 40),
                    "normal": _captured(options.normal, 1 << 41),
                },
                "execution": {"device": "cpu"},
                "report": None,
            }
        )
    )


def _captured(n: int, first: int) -> dict[str, Any]:
    arguments = {"n": n, "first": first}
    source = {"kind": "factory", "factory": "benchmarks.detection_memory:drawn", "arguments": arguments}
    return {
        "model": {"kind": "factory", "factory": "benchmarks.detection_memory:through"},
        "data": {"source": source},
        "sites": ["0"],
        "batch_samples": 2048,
    }


def opened(options: argparse.Namespace) -> tuple[Location, dict[str, RowsRef]]:
    """The root and the rows of each capture."""
    root, found = place(options), {}
    for name in ("rows", "held", "normal"):
        capture_id = json.loads(root.read(f"names/{name}.json"))["capture"]
        found[name] = RowsRef(capture=capture_id, digest=capture_id, site="0:out:0")
    return root, found


def stages(refs: dict[str, RowsRef]) -> dict[str, list[ResolvedStage]]:
    """The stages of each part, in order."""
    rows, held = {"x": refs["rows"]}, {"x": refs["held"]}
    basis, normal = stage_of("spectrum.pca", rows, components=WIDTH), stage_of("anomaly.reference", rows)
    kept = stage_of("anomaly.normal_rows", {"x": refs["normal"]}, most=1 << 20)
    of, about = {"basis": basis.id}, {"reference": normal.id}
    scores, others = (stage_of("anomaly.residual", x, of, energy=ENERGY) for x in (rows, held))
    return {
        "fit": [basis, normal],
        "residual": [scores],
        "distance": [stage_of("anomaly.mahalanobis", rows, about)],
        "held": [others, kept],
        "calibrated": [stage_of("anomaly.calibrated", rows, {"scores": scores.id, "calibration": others.id})],
        "neighbours": [stage_of("anomaly.neighbours", rows, {"normal": kept.id}, k=K)],
    }


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part."""
    keep_memory()
    root, refs = opened(options)
    root.delete("artifacts", recursive=True)
    parts, seconds = stages(refs), {}
    for name, asked in parts.items():
        run = protocol.timed(lambda s=asked: run_stages(root, s, serial))
        seconds[name] = run.seconds
    seconds["off"] = _off(root, refs, parts["neighbours"][0])
    seconds["product"] = 2 * options.rows * options.normal * WIDTH / protocol.gemm_peak(np.float32, size=1024)
    return seconds


def _off(root: Location, refs: dict[str, RowsRef], stage: ResolvedStage) -> float:
    """Largest relative difference between distances to the k-th neighbour and NumPy's, of some rows."""
    score = artifact_arrays(root, stage.id)["score"][:CHECKED]
    source = SiteSource(root, [refs["normal"]])
    normal = source.part_rows(0, 0, source.parts[0].space.n_rows).values[0].astype(np.float64)
    x = SiteSource(root, [refs["rows"]]).part_rows(0, 0, CHECKED).values[0].astype(np.float64)
    x, normal = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, normal))
    apart = np.stack([np.linalg.norm(normal - row, axis=1) for row in x])
    exact = np.partition(apart, K - 1, axis=1)[:, K - 1]
    return float(np.max(np.abs(score - exact) / exact))


def read(options: argparse.Namespace) -> int:
    """Every shard once."""
    root, refs = opened(options)
    source, total = SiteSource(root, [refs["rows"]]), 0
    space = source.parts[0].space
    for shard in range(space.n_shards):
        total += len(source.part_rows(0, *space.shard_bounds(shard)).index)
    return total


def products(options: argparse.Namespace) -> float:
    """Seconds of the products of residuals."""
    root, refs = opened(options)
    basis = artifact_arrays(root, stages(refs)["fit"][0].id)
    kept = int(np.searchsorted(basis["explained"].cumsum(), ENERGY)) + 1
    components = torch.from_numpy(basis["components"][:kept]).double()
    x = torch.randn(TILE_ROWS, WIDTH).double()

    def once() -> None:
        for _ in range(-(-options.rows // TILE_ROWS)):
            _ = (x @ components.T) @ components

    return protocol.timed(once).seconds


if __name__ == "__main__":
    main()

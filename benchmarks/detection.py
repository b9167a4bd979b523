"""Detectors beside those of other libraries: scores on the same rows, and seconds and memory.

    python -m benchmarks.detection --data FOLDER [--only exact,tables,speed] [--pairs 7]

exact    `anomaly.neighbours`, `vim`, `mahalanobis` (and `relative`) beside pytorch-ood on photographs (`benchmarks.detection_sets`), fitted
         without shrinkage, as theirs is. Theirs divides no covariance by rows, halves `mahalanobis`, adds 1e-6 to each diagonal and takes
         float32, all of which AUROC is compared with as it stands and scores in float64 (their `vim` takes float32 alone); the layer that
         `vim` asks for is the same random one on both sides
tables   `anomaly.neighbours` beside PyOD's largest distance, and `anomaly.residual` and `mahalanobis` beside plain NumPy, on tables that
         are dealt as ADBench deals them, seeds 1, 2, 3
speed    fitting and scoring, ours as stages over a sealed capture and written to it, theirs in memory, with peaks of memory above the start

One thread on each side, alternating runs. Ratios are theirs over ours. FPR95 is told in both conventions: the share of normal rows that are
flagged where 95 of 100 strange ones are, and the share of strange rows that pass where 95 of 100 normal ones do. Results go to
benchmarks/results/detection.json.
"""

import argparse
import json
import tempfile
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from benchmarks import protocol
from benchmarks.children import child, scratch_folder
from benchmarks.detection_sets import dealt, photographs, tables
from benchmarks.protocol import ROOT, Run, environment, pairs, peer_python, ratio, save, saved
from pipelines.serial import run_serial
from schemas.run import RunSpec
from schemas.stage import ResolvedStage, RowsRef
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.extract.allocator import keep_memory
from tasks.methods.anomaly import (
    head_subspace,
    mahalanobis,
    neighbours,
    normal_rows,
    reference,
    residual,
    vim,
)
from tasks.methods.spectrum import pca
from tasks.store.location import Location
from tests.helpers import stage_of
from tests.methods.detectors import Fitted, scores

PARTS = ("exact", "tables", "speed")
PEERS = ROOT / "benchmarks" / "peers"
K, COMPONENTS, OUTPUTS, WIDTH = 50, 256, 10, 512
TABLE_K = 5
SEEDS = (1, 2, 3)
DETECTORS = ("neighbours", "mahalanobis", "relative", "vim")


def head() -> nn.Module:
    """A layer with seeded weights, whose input is captured."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, OUTPUTS))


def main() -> None:
    """Measure the asked parts, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--child", choices=DETECTORS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        keep_memory()
        protocol.report_child(bind(ours, options.child))
        return
    if options.data is None:
        print("detection: no --data, left out")
        return
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        for name in options.only.split(","):
            parts = {
                "exact": bind(exact, options.data, Path(folder)),
                "tables": bind(of_tables, options.data, Path(folder)),
                "speed": bind(speed, options.data, Path(folder), options.pairs),
            }
            made = {
                name: {
                    "found": parts[name](),
                    "environment": environment(1, ("torch", "numpy", "scikit-learn")),
                }
            }
            print(json.dumps(made, indent=1), flush=True)
            save("detection", saved("detection") | made)


def exact(data: Path, folder: Path) -> dict[str, Any]:
    """AUROC of both, and the largest difference of scores that mean the same."""
    given, found = photographs(data), {}
    layer = head().state_dict()
    weights = {"{module}." + name.removeprefix("0."): value for name, value in layer.items()}
    rows = written(folder, data)
    for name in DETECTORS:
        mine = _ours(name, given.normal, given.code, given.new, weights)
        theirs = {
            dtype: _theirs(name, rows, dtype)
            for dtype in (("float32",) if name == "vim" else ("float32", "float64"))
        }
        same = theirs["float32" if name == "vim" else "float64"] * _unit(name, len(given.normal))
        found[name] = {
            "ours": quality(given.strange, mine),
            "theirs": {dtype: quality(given.strange, x) for dtype, x in theirs.items()},
            "largest difference over the spread": float(np.abs(mine - same).max() / mine.std()),
        }
        print(name, found[name], flush=True)
    return found


def quality(strange: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """AUROC, and FPR95 in both conventions."""
    false, true, _ = roc_curve(strange, score)
    back_false, back_true, _ = roc_curve(~strange, -score)
    return {
        "auroc": float(roc_auc_score(strange, score)),
        "fpr95, strange positive": float(false[true >= 0.95].min()),
        "fpr95, normal positive": float(back_false[back_true >= 0.95].min()),
    }


def written(folder: Path, data: Path) -> str:
    """The rows and the layer, for the peer."""
    given, layer, path = photographs(data), head().state_dict(), folder / "photographs.npz"
    np.savez(
        path,
        normal=given.normal,
        new=given.new,
        code=given.code,
        weight=layer["0.weight"].numpy(),
        bias=layer["0.bias"].numpy(),
    )
    return str(path)


def _unit(name: str, rows: int) -> float:
    """What theirs is multiplied with to mean what ours does."""
    return {"mahalanobis": 2.0 * rows, "relative": float(rows)}.get(name, 1.0)


def _ours(
    name: str, normal: np.ndarray, code: np.ndarray, new: np.ndarray, weights: dict[str, torch.Tensor]
) -> np.ndarray:
    if name == "neighbours":
        return scores(neighbours, "normal", Fitted(normal_rows, normal), new, k=K)
    if name == "vim":
        fitted = Fitted(head_subspace, normal, components=COMPONENTS, weights=weights)
        return scores(vim, "normal", fitted, new)
    fitted = Fitted(reference, normal, code, label="class", shrinkage="none")
    return scores(mahalanobis, "reference", fitted, new, relative=name == "relative")


def _peer(name: str, rows: str, dtype: str) -> dict[str, Any]:
    return {
        "detector": name,
        "rows": rows,
        "dtype": dtype,
        "k": K,
        "components": COMPONENTS,
        "threads": 1,
    }


def _theirs(name: str, rows: str, dtype: str) -> np.ndarray:
    script = [str(PEERS / "pytorch_ood_scores.py")]
    with child(script, _peer(name, rows, dtype), 1, _python("pytorch_ood")) as other:
        found: np.ndarray = other.values(0)[0]
        return found


def _python(name: str) -> str:
    return peer_python(name, (PEERS / f"{name}.txt").read_text().split())


def of_tables(data: Path, folder: Path) -> dict[str, Any]:
    """Each table: mean AUROC over the seeds, and largest differences."""
    found: dict[str, Any] = {}
    for name, x, y in tables(data):
        splits = [dealt(x, y, seed) for seed in SEEDS]
        paths = [str(folder / f"{name}-{seed}.npz") for seed in SEEDS]
        for path, split in zip(paths, splits, strict=True):
            np.savez(path, normal=split.normal, new=split.new)
        with child(
            [str(PEERS / "pyod_scores.py")], {"splits": paths, "k": TABLE_K}, 1, _python("pyod")
        ) as other:
            theirs = np.split(other.values(0)[0], np.cumsum([len(s.new) for s in splits])[:-1])
        rows = [_of_split(split, peer) for split, peer in zip(splits, theirs, strict=True)]
        found[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        print(name, {key: round(value, 6) for key, value in found[name].items()}, flush=True)
    worst = {key: max(abs(row[f"{key}"] - row[f"{key}, other"]) for row in found.values()) for key in OURS}
    return {"tables": found, "largest difference of a mean AUROC": worst}


OURS = ("neighbours", "residual", "mahalanobis")


def _of_split(split: Any, peer: np.ndarray) -> dict[str, float]:
    normal, new = split.normal, split.new
    basis = Fitted(pca, normal, components=min(normal.shape[1], len(normal) - 1), engine="moments")
    plain = Fitted(reference, normal, shrinkage="none")
    mine = {
        "neighbours": scores(
            neighbours, "normal", Fitted(normal_rows, normal, unit_length=False), new, k=TABLE_K
        ),
        "residual": scores(residual, "basis", basis, new, energy=0.9),
        "mahalanobis": scores(mahalanobis, "reference", plain, new),
    }
    other = {"neighbours": peer} | _numpy(normal, new)
    found = {name: float(roc_auc_score(split.strange, score)) for name, score in mine.items()}
    found |= {f"{name}, other": float(roc_auc_score(split.strange, score)) for name, score in other.items()}
    return found


def _numpy(normal: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
    """Residual and distance by a singular value decomposition of the rows, directions below 1e-12 of the variance left out."""
    mean = normal.mean(0)
    _, value, v = np.linalg.svd(normal - mean, full_matrices=False)
    variance = value**2
    k = int(np.searchsorted(variance.cumsum() / variance.sum(), 0.9)) + 1
    along = (new - mean) @ v.T
    there = variance > 1e-12 * variance[0]
    outside = new - mean - along[:, :k] @ v[:k]
    return {
        "residual": np.square(outside).sum(1),
        "mahalanobis": len(normal) * (np.square(along[:, there]) / variance[there]).sum(1),
    }


def speed(data: Path, folder: Path, n: int) -> dict[str, Any]:
    """Ratios of seconds and of memory above the start."""
    captured(data)
    rows, found = written(folder, data), {}
    for name in DETECTORS:
        script = [str(PEERS / "pytorch_ood_scores.py")]
        mine = bind(
            protocol.child_run, ["-m", "benchmarks.detection", f"--child={name}", f"--data={data}"], 1
        )
        with child(script, _peer(name, rows, "float32"), 1, _python("pytorch_ood")) as other:
            runs = pairs(mine, other.run, n)
        found[name] = _compared(*runs)
        print(name, found[name], flush=True)
    return found


def _compared(ours_: list[Run], theirs: list[Run]) -> dict[str, Any]:
    peaks = [
        [(run.value["peak_bytes"] - run.value["base_bytes"]) / 1e6 for run in runs]
        for runs in (ours_, theirs)
    ]
    return {
        "seconds": [float(np.median([run.seconds for run in runs])) for runs in (ours_, theirs)],
        "theirs over ours": ratio(theirs, ours_)._asdict(),
        "theirs over ours, CPU": ratio(theirs, ours_, "cpu_seconds")._asdict(),
        "peak MB above the start": [float(np.median(peak)) for peak in peaks],
    }


def place() -> Path:
    """Where the captures lie."""
    folder = ROOT / ".bench" / "detection"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def captured(data: Path) -> None:
    """Normal and new rows as the input of the layer, by a real run, unless they are there."""
    given, captures = photographs(data), {}
    for name, x, code in (("normal", given.normal, given.code), ("new", given.new, given.code[:1])):
        path = place() / f"{name}.npz"
        if not path.exists():
            np.savez(path, x=x, kind=np.array(["first", "second"])[np.resize(code, len(x))])
        source = {"kind": "arrays", "path": str(path), "array": "x", "labels": {"kind": "kind"}}
        captures[name] = {
            "model": {"kind": "factory", "factory": "benchmarks.detection:head"},
            "data": {"source": source},
            "sites": ["0:in"],
            "batch_samples": 512,
        }
    run = {"name": "detection", "root": str(place()), "captures": captures, "report": None}
    run_serial(RunSpec.model_validate(run | {"execution": {"device": "cpu"}}))


def ours(name: str) -> int:
    """Fit and score, as stages."""
    root, refs = Location(str(place())), {}
    for kind in ("normal", "new"):
        capture = json.loads(root.read(f"names/{kind}.json"))["capture"]
        refs[kind] = RowsRef(capture=capture, digest=capture, site="0:in:0")
    root.delete("artifacts", recursive=True)
    stages = _stages(name, {"x": refs["normal"]}, {"x": refs["new"]})
    made = run_stages(root, stages, serial)
    return int(made[stages[-1].id].result["n_rows"])


def _stages(name: str, normal: dict[str, RowsRef], new: dict[str, RowsRef]) -> list[ResolvedStage]:
    if name == "neighbours":
        fit = stage_of("anomaly.normal_rows", normal)
        return [fit, stage_of("anomaly.neighbours", new, {"normal": fit.id}, k=K)]
    if name == "vim":
        fit = stage_of("anomaly.head_subspace", normal, components=COMPONENTS)
        return [fit, stage_of("anomaly.vim", new, {"normal": fit.id})]
    fit = stage_of("anomaly.reference", normal, label="kind", shrinkage="none")
    own = {"relative": True} if name == "relative" else {}
    return [fit, stage_of("anomaly.mahalanobis", new, {"reference": fit.id}, **own)]


if __name__ == "__main__":
    main()

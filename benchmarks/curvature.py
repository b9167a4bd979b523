"""The Hessian of a small network on scikit-learn's digits beside PyHessian and the dense matrix: `python -m benchmarks.curvature`.

Ours: `gradients.hessian` (3 eigenpairs, tolerance 1e-4) and `gradients.spectral_density` (60 vectors, 10 steps, for the trace), run as
stages over a capture.
PyHessian: power iteration with deflation (tolerance 1e-4 between iterations) and 60 Hutchinson vectors. All in float32, one thread; the
dense matrix in
float64. Results go to benchmarks/results/curvature.json.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.extraction import PEERS, _requirements
from benchmarks.protocol import environment, peer_python, save
from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import open_artifact


def network() -> nn.Module:
    """Seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def main() -> None:
    """Run all three, print and save."""
    torch.set_num_threads(1)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target, dtype=torch.int64)
    results = {"environment": environment(1), "dense": dense(x, y)}
    with tempfile.TemporaryDirectory() as folder:
        results |= {"ours": ours(folder), "pyhessian": theirs(Path(folder), x, y)}
    print(json.dumps({name: results[name] for name in ("dense", "ours", "pyhessian")}, indent=1))
    print(f"saved {save('curvature', results)}")


def dense(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Leading eigenvalues and trace of the whole matrix in float64."""
    module = network().double()
    parameters = list(module.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(module(x.double()), y), parameters, create_graph=True)
    flat = torch.cat([slope.flatten() for slope in slopes])
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters, retain_graph=True)]) for v in flat
    ]
    values = np.linalg.eigvalsh(torch.stack(rows).numpy())
    order = np.argsort(-np.abs(values))
    return {
        "eigenvalues": values[order][:3].tolist(),
        "trace": float(values.sum()),
        "parameters": len(values),
    }


def ours(folder: str) -> dict[str, Any]:
    """As stages of a run."""
    capture = {
        "model": {"kind": "factory", "factory": "benchmarks.curvature:network"},
        "data": {"source": {"kind": "digits", "layout": "flat"}},
        "loss": {"kind": "classification", "label": "digit"},
    }
    top = {"method": "gradients.hessian", "config": {"components": 3, "tolerance": 1e-4}}
    density = {"method": "gradients.spectral_density", "config": {"probes": 60, "steps": 10}}
    seconds = {}
    for name, stage in (("hessian", top), ("density", density)):
        run = RunSpec.model_validate(
            {
                "name": "curvature",
                "root": folder,
                "captures": {"digits": capture},
                "stages": {name: stage},
                "report": None,
            }
        )
        begun = time.perf_counter()
        outcome = run_serial(run)
        seconds[name] = time.perf_counter() - begun
        view = open_artifact(folder, outcome.artifacts[0].id)
        if name == "hessian":
            values, residual, rounds = (
                view.arrays["eigenvalue"].values.tolist(),
                view.result["residual"],
                view.result["rounds"],
            )
        else:
            trace, error = view.result["trace"], view.result["trace_error"]
    return {
        "eigenvalues": values, "residual": residual, "rounds": rounds, "trace": trace, "trace_error": error, "seconds": seconds,
    }  # fmt: skip


def theirs(folder: Path, x: Tensor, y: Tensor) -> dict[str, Any]:
    """In its own environment."""
    torch.save({"weights": network().state_dict(), "x": x, "y": y}, folder / "given.pt")
    python = peer_python("pyhessian", _requirements("pyhessian"))
    command = [python, str(PEERS / "pyhessian_spectrum.py"), str(folder / "given.pt")]
    found = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    trace = np.array(found["trace"])
    error = float(trace.std(ddof=1) / len(trace) ** 0.5)
    return {
        "eigenvalues": found["eigenvalues"],
        "trace": float(trace.mean()),
        "trace_error": error,
        "seconds": found["seconds"],
    }


if __name__ == "__main__":
    main()

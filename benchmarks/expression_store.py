"""Rows in a store, and stages over them: what the parts of `benchmarks.self_expression` run on."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from pipelines.serial import run_serial
from schemas.artifact import Artifact
from schemas.run import RunSpec
from schemas.stage import ArtifactRef, ResolvedStage, RowsRef
from tasks.drive import Driver, serial
from tasks.engine import run_stages
from tasks.engine.stages import finished
from tasks.methods.contract import load_method
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location


class Stored(NamedTuple):
    """The rows of a sealed capture."""

    root: Location
    ref: RowsRef

    def stage(self, method: str, artifacts: dict[str, str] | None = None, **options: Any) -> ResolvedStage:
        """A method of the family `clustering` over the rows; artifact ports by the ids that they take."""
        module = load_method(f"clustering.{method}")
        return ResolvedStage(
            method=f"clustering.{method}",
            version=module.VERSION,
            config=module.Config.model_validate(options).model_dump(mode="json"),
            rows={"x": (self.ref,)},
            artifacts={port: ArtifactRef(artifact=id_) for port, id_ in (artifacts or {}).items()},
        )

    def made(self, *stages: ResolvedStage, driver: Driver = serial) -> Artifact:
        """The artifact of the last of some stages."""
        return run_stages(self.root, stages, driver)[stages[-1].id]

    def has(self, stage: ResolvedStage) -> bool:
        """Whether a stage has run."""
        return finished(self.root, stage.id) is not None

    def arrays(self, stage: ResolvedStage) -> dict[str, np.ndarray]:
        """Of a stage that has run."""
        return artifact_arrays(self.root, stage.id)


def through() -> nn.Module:
    """The network whose output is its input."""
    return nn.Sequential(nn.Identity())


def stored(folder: Path, x: np.ndarray, kind: np.ndarray | None = None) -> Stored:
    """Capture rows as float32 by a real run; `kind` is a label with classes."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {} if kind is None else {"kind": np.array([f"class {k:03d}" for k in kind])}
    np.savez(folder / "rows.npz", x=x.astype(np.float32), **named)
    source = {
        "kind": "arrays",
        "path": str(folder / "rows.npz"),
        "array": "x",
        "labels": {name: name for name in named},
    }
    capture = {
        "model": {"kind": "factory", "factory": "benchmarks.expression_store:through"},
        "data": {"source": source},
        "sites": ["0"],
        "batch_samples": 512,
    }
    run = {"name": "rows", "root": str(folder), "captures": {"rows": capture}, "report": None}
    run_serial(RunSpec.model_validate(run | {"execution": {"device": "cpu"}}))
    return opened(folder)


def opened(folder: Path) -> Stored:
    """Rows that were captured before."""
    root = Location(str(folder))
    name = json.loads(root.read("names/rows.json"))["capture"]
    return Stored(root, RowsRef(capture=name, digest=name, site="0:out:0"))


def dense(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [row, row]: coefficients as a matrix."""
    index, value = arrays["index"], arrays["coefficient"]
    c, there = np.zeros((len(index), len(index))), index >= 0
    c[np.nonzero(there)[0], index[there]] = value[there]
    return c

"""Figures of a training from what real stages leave: each from its artifact alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import subspan
from pipelines.serial import run_serial
from schemas.outcome import RunOutcome
from schemas.run import RunSpec
from tasks.gather import stage_artifact
from tasks.illustrations import Illustration
from tasks.measures import StageArtifact
from tasks.store.location import Location
from tasks.training_illustrations import training_illustrations
from tests.pipelines.runs import vectors_run

EVERY = 10
WEIGHT = "0.weight"


def record(root: Path, steps: int = 12) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with subspan.Recorder(
        root, "it", net, ("*.weight",), quantities=("weight", "update", "gradient"), every=EVERY
    ) as recorder:
        for step in range(EVERY * steps):
            loss = net(torch.randn(16, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            recorder.before_step()
            optimizer.step()
            recorder.record(step, loss=loss.item())


def artifacts_of(root: Path, outcome: RunOutcome) -> dict[str, StageArtifact]:
    assert not outcome.stage_failures
    return {
        made.stage: stage_artifact(Location(str(root)), made.stage, made.id) for made in outcome.artifacts
    }


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageArtifact]:
    root = tmp_path_factory.mktemp("training")
    record(root)
    stages = {
        "path": {"method": "gradients.trajectory", "sites": f"{WEIGHT}:weight"},
        "frozen": {"method": "gradients.dominant_overlap", "sites": f"{WEIGHT}:grad", "config": {"rank": 2}},
        "rank": {"method": "gradients.update_structure", "sites": f"{WEIGHT}:update"},
        "final": {"method": "gradients.early_final", "sites": f"{WEIGHT}:weight", "config": {"rank": 2}},
    }
    source = {"kind": "recording", "path": str(root / "recordings" / "it")}
    capture = {"model": {"kind": "recorded"}, "data": {"source": source}}
    asked = {"name": "it", "root": str(root), "captures": {"it": capture}, "stages": stages, "report": None}
    return artifacts_of(root, run_serial(RunSpec.model_validate(asked)))


@pytest.fixture(scope="module")
def curvature(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageArtifact]:
    root = tmp_path_factory.mktemp("curvature")
    chosen: dict[str, Any] = {"parameters": ["last.weight"]}
    stages = {
        "top": {"method": "gradients.hessian", "config": {"components": 3, "max_rounds": 40, **chosen}},
        "bulk": {"method": "gradients.spectral_density", "config": {"probes": 2, "steps": 6, **chosen}},
        "share": {"method": "gradients.hessian_overlap", "sites": "**:grad"},
    }
    run = vectors_run(
        root, 60, loss={"kind": "classification", "label": "label"}, sites=[], stages=stages,
        parameter_gradients={"parameters": ["last.weight"], "keep": {"kind": "exact"}},
    )  # fmt: skip
    return artifacts_of(root, run_serial(run))


def drawn(made: StageArtifact) -> Illustration:
    (illustration,) = training_illustrations([made])
    return illustration


def values(illustration: Illustration, label: str, panel: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Where a named line lies."""
    (line,) = (found for found in illustration.figure.axes[panel].get_lines() if found.get_label() == label)
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


STEPS = [float(EVERY * k) for k in range(12)]
LINES = [
    ("frozen", "with the first step", "to_first"),
    ("rank", "effective rank", "effective_rank"),
    ("rank", "effective rank, by chance", "effective_rank_null"),
    ("final", "share of the leading directions", "concentration"),
]


@pytest.mark.parametrize(("stage", "label", "array"), LINES)
def test_lines_are_the_arrays_over_the_recorded_steps(
    training: dict[str, StageArtifact], stage: str, label: str, array: str
) -> None:
    x, y = values(drawn(training[stage]), label)
    assert x.tolist() == STEPS
    shown = np.isfinite(y)
    assert shown.sum() >= len(y) - 1  # at the start nothing has moved
    np.testing.assert_allclose(y[shown], training[stage].arrays[array][shown])


def test_a_path_lies_beside_its_walk(training: dict[str, StageArtifact]) -> None:
    path, made = training["path"], drawn(training["path"])
    np.testing.assert_allclose(values(made, "random walk")[1], path.arrays["null_share"])
    x, y = values(made, "component 1", panel=1)
    assert x.tolist() == STEPS
    assert abs(np.corrcoef(y, path.arrays["projection"][:, 0])[0, 1]) == pytest.approx(1)


def test_nulls_are_those_of_the_results(
    training: dict[str, StageArtifact], curvature: dict[str, StageArtifact]
) -> None:
    assert set(values(drawn(training["frozen"]), "chance")[1]) == {2 / 12}
    assert set(values(drawn(curvature["share"]), "chance")[1]) == {3 / 128}


def test_curvature_is_drawn_with_its_errors(curvature: dict[str, StageArtifact]) -> None:
    top, (axes,) = curvature["top"], drawn(curvature["top"]).figure.axes
    points, _, (bars,) = axes.containers[0].lines  # type: ignore[attr-defined]
    np.testing.assert_allclose(points.get_ydata(), top.arrays["eigenvalue"])
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * top.arrays["residual"], atol=1e-12)
    (axes,) = drawn(curvature["bulk"]).figure.axes
    assert axes.get_yscale() == "log"


def test_large_arrays_are_not_read(curvature: dict[str, StageArtifact]) -> None:
    assert "eigenvector" not in curvature["top"].arrays
    assert "node" not in curvature["bulk"].arrays

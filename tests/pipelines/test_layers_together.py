"""Attention's layers of a real encoder compressed together, beside each alone at the same size."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import list_artifacts, open_artifact
from tests.extract.nets import MINILM

LAYERS = (0, 2, 5)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    capture = {
        "model": {"kind": "transformers", "name": MINILM},
        "data": {
            "source": {"kind": "stdlib-docstrings"},
            "subset": {"max_tokens": 8000, "stratify_by": "package", "seed": 0},
        },
        "sites": [f"encoder.layer.{k}.attention.self.query:in:0" for k in LAYERS],
        "max_length": 128,
        "too_long": "truncate",
    }
    stages = {
        "joint": {"method": "compression.joint_layers", "config": {"corrected": False}},
        "tucker": {"method": "compression.attention_tucker"},
    }
    run = RunSpec.model_validate(
        {"name": "together", "root": str(root), "captures": {"minilm": capture}, "stages": stages}
    )
    assert not run_serial(run).stage_failures
    return root


def results(root: Path, method: str) -> list[dict[str, Any]]:
    return [open_artifact(root, artifact.id).result for artifact in list_artifacts(root, method)]


@pytest.mark.slow
def test_query_key_and_value_lose_less_together(done: Path) -> None:
    found = results(done, "compression.joint_layers")
    assert len(found) == len(LAYERS)
    for result in found:
        for at, most in zip(result["at"], (0.72, 0.80, 0.83), strict=True):
            assert at["lost"] <= most * at["lost_apart"]
            assert at["lost"] < at["lost_dealt"] <= at["lost_apart"]
            assert at["lost_least"] <= at["lost"] <= at["residual_bound"] <= 2.2 * at["lost"]
            assert at["lost"] <= at["weyl_bound"]
            assert abs(at["numbers"] - at["numbers_apart"]) < 0.01 * at["numbers"]
            assert at["lost"] < at["lost_held_out"]


@pytest.mark.slow
def test_the_best_core_keeps_short_axes_whole(done: Path) -> None:
    """And is no better than one decomposition of all layers side by side."""
    for result in results(done, "compression.attention_tucker"):
        assert tuple(result["core"])[1:] == (32, 4, 12)
        assert result["tucker"]["lost"] <= result["bound"] * (1 + 1e-9)
        assert result["together"]["lost"] <= result["tucker"]["lost"] <= 1.02 * result["together"]["lost"]

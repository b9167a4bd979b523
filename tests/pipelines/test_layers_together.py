"""Attention's layers of a real encoder compressed together, beside each alone at the same size."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import list_artifacts, load_compressed, open_artifact
from tasks.export import export
from tests.extract.nets import MINILM, save

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


def test_they_stand_in_whole_networks(tmp_path: Path) -> None:
    """Judged as candidates and exported, shared tensors counted and saved once."""
    encoder = {"kind": "transformers", "name": save("bert", tmp_path / "bert")}
    texts = {"source": {"kind": "factory", "factory": "tests.pipelines.runs:token_sequences"}}
    base = {"model": encoder, "data": texts}
    loss = {"kind": "projection"}
    site = "encoder.layer.*.attention.self.query:in:0"
    run = RunSpec.model_validate(
        {
            "name": "together",
            "root": str(tmp_path / "out"),
            "captures": {
                "inputs": {**base, "sites": [site]},
                "judged": {**base, "sites": ["encoder.layer.0:out:0"], "loss": loss},
            },
            "stages": {
                "joint": {"method": "compression.joint_layers", "inputs": {"x": {"captures": ["inputs"]}}},
                "tucker": {
                    "method": "compression.attention_tucker",
                    "inputs": {"x": {"captures": ["inputs"]}},
                    "config": {"heads": 2},
                },
                "smaller": {
                    "method": "compression.model",
                    "inputs": {"network": {"captures": ["judged"]}},
                    "config": {"samples": 20, "neighbours": 3, "groups": 3, "shares": [0.6]},
                },
            },
            "report": None,
        }
    )
    outcome = run_serial(run)
    assert not outcome.stage_failures
    (artifact,) = list_artifacts(tmp_path / "out", "compression.model")
    view = open_artifact(tmp_path / "out", artifact.id)
    points = {point["name"]: point for point in view.result["points"]}
    assert {name.partition(",")[0] for name in points} == {"as it is", "joint_layers", "attention_tucker"}
    for name, point in points.items():
        if name != "as it is":
            made = export(view, tmp_path / "exported", name)
            again = load_compressed(tmp_path / "exported")
            assert 4 * sum(p.numel() for p in again.parameters()) == made.stored_bytes
            assert point["kept_of_network"] == pytest.approx(made.stored_bytes / view.result["network_bytes"])

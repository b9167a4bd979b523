"""A language model sliced from end to end: states at norms, widths, the judgement of networks, the folder."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import list_artifacts, load_compressed, open_artifact
from tasks.compressed.sliced import norm_paths
from tasks.export import export
from tests.trained_text import texts, trained

N = 120


def run_of(root: Path, some: slice = slice(None), beside: tuple[str, ...] = (), **moments: Any) -> RunSpec:
    """At the inputs of some norms, and of what stands beside them."""
    net = trained("gpt2", 60)
    net.save_pretrained(root / "gpt2")  # type: ignore[operator]
    model = {"name": str(root / "gpt2"), "head": "causal-lm"}

    def capture(part: str) -> dict[str, Any]:
        arguments = {"part": part, "n": N}
        source = {"kind": "factory", "factory": "tests.trained_text:some_texts", "arguments": arguments}
        return {"model": model, "data": {"source": source}}

    sites = [f"{path}:in:0" for path in (*norm_paths(net)[some], *beside)]
    judge = {"captures": ["new"]}
    return RunSpec.model_validate(
        {
            "name": "sliced",
            "root": str(root),
            "captures": {
                "seen": {**capture("seen"), "sites": sites},
                "new": {**capture("new"), "loss": {"kind": "lm"}},
            },
            "stages": {
                "moments": {
                    "method": "compression.residual_moments",
                    "config": {"centred": True, **moments},
                    "inputs": {"x": {"captures": ["seen"]}},
                },
                "widths": {"method": "compression.slicing", "config": {"kept": [0.75, 0.25]}},
                "smaller": {
                    "method": "compression.model",
                    "config": {"samples": N, "kept": 0.9},
                    "inputs": {"network": judge, "layers": {"stage": "widths"}},
                },
            },
            "execution": {"device": "cpu"},
            "report": None,
        }
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sliced")
    outcome = run_serial(run_of(root))
    assert not outcome.stage_failures
    return root


def test_networks_are_judged_and_written(done: Path) -> None:
    """Sizes and losses again by hand, of what the folder gives."""
    (artifact,) = list_artifacts(done, "compression.model")
    view = open_artifact(done, artifact.id)
    points = {point["name"]: point for point in view.result["points"]}
    (widths,) = (open_artifact(done, a.id).result for a in list_artifacts(done, "compression.slicing"))
    assert set(points) == {
        "as it is", *(f"slicing, {rule}, {kept:g}" for kept in (0.75, 0.25) for rule in ("uniform", "greedy")),
    }  # fmt: skip
    net, new = trained("gpt2", 60), texts()["new"][:N]
    numbers = sum(p.numel() for p in net.parameters())
    assert view.result["layers_bytes"] == view.result["network_bytes"] == 4 * numbers
    assert (
        points["slicing, uniform, 0.25"]["divergence"]["value"]
        > points["slicing, uniform, 0.75"]["divergence"]["value"]
        > 0
    )
    for at, rule in ((widths["at"][0], "uniform"), (widths["at"][1], "greedy")):
        name = f"slicing, {rule}, {at['kept']:g}"
        made = export(view, done / name.replace(" ", "_"), name)
        again = load_compressed(made.folder)
        with torch.no_grad():
            loss = float(again(input_ids=new, labels=new).loss)
            assert torch.equal(again(new).logits, made.network(new).logits)
        assert points[name]["loss"]["value"] == pytest.approx(loss, rel=1e-4)
        assert (
            points[name]["kept"]
            == points[name]["kept_of_network"]
            == pytest.approx(made.stored_bytes / (4 * numbers))
        )
        assert points[name]["stored_bytes"] == made.stored_bytes
        assert 0 <= made.tensor_bytes - made.stored_bytes < 8000
    assert view.result["best"] in points
    assert not any("too good" in note for note in view.result["caveats"])  # other samples judge
    chosen = [layer["rank"] for layer in view.result["layers"]]
    assert len(chosen) == 5
    assert {layer["kind"] for layer in view.result["layers"]} == {"sliced"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"centred": False}, "set `centred`"),
        ({"some": slice(4)}, r"ln_2, expected .*ln_f, in this order"),
        (
            {"beside": ("transformer.h.0.attn.c_attn",)},
            r"c_attn of 64 features is not in the network.*\(64, 192\)",
        ),
    ],
)
def test_what_is_taken_for_the_norms(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    outcome = run_serial(run_of(tmp_path, **options))
    assert any(re.search(told, failure.reason) for failure in outcome.stage_failures)

"""A language model whose layers store their weights turned, compressed from end to end: candidates again by hand, folders, tied weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.serial import run_serial
from schemas.run import RunSpec
from subspan import list_artifacts, load_compressed, open_artifact
from tasks.export import export
from tests.trained_text import texts, trained

N = 60
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def run_of(root: Path, beside: tuple[str, ...] = ()) -> RunSpec:
    """Inputs of the blocks' layers and of others, and gradients of the language loss at the outputs of the former."""
    trained("gpt2", 60).save_pretrained(root / "gpt2")  # type: ignore[operator]
    model = {"name": str(root / "gpt2"), "head": "causal-lm"}

    def capture(part: str, **more: Any) -> dict[str, Any]:
        arguments = {"part": part, "n": N}
        source = {"kind": "factory", "factory": "tests.trained_text:some_texts", "arguments": arguments}
        return {"model": model, "data": {"source": source}, **more}

    layers = [f"transformer.h.*.{name}" for name in LINEARS]
    loss = {"loss": {"kind": "lm"}}
    gradients = {**loss, "quantities": ["activation_gradient"]}
    x = {"x": {"captures": ["seen"]}}
    stages: dict[str, Any] = {
        "outputs": {"method": "compression.low_rank", "inputs": x},
        "smaller": {
            "method": "compression.model",
            "inputs": {"network": {"captures": ["new"]}},
            "config": {"samples": N, "kept": 0.8, "shares": [0.1]},
        },
    }
    if not beside:
        both = {**x, "g": {"captures": ["gradients"]}}
        stages["two_sided"] = {"method": "compression.two_sided", "inputs": both}
        stages["four"] = {"method": "compression.quantised", "inputs": x, "config": {"group": 16}}
        stages["mixed"] = {"method": "compression.mixed_precision", "inputs": x}
    return RunSpec.model_validate(
        {
            "name": "language-model",
            "root": str(root),
            "captures": {
                "seen": capture("seen", sites=[f"{path}:in:0" for path in (*layers, *beside)]),
                "gradients": capture("seen", sites=[f"{path}:out:0" for path in layers], **gradients),
                "new": capture("new", sites=["transformer.ln_f:out:0"], **loss),
            },
            "stages": stages,
            "execution": {"device": "cpu"},
            "report": None,
        }
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("language-model")
    outcome = run_serial(run_of(root))
    assert not outcome.stage_failures
    return root


def loss_of(network: nn.Module) -> float:
    new = texts()["new"][:N]
    with torch.no_grad():
        return float(network(input_ids=new, labels=new).loss)


@pytest.mark.parametrize("method", ["low_rank", "two_sided"])
def test_factors_put_in_by_hand(done: Path, method: str) -> None:
    """Into the turned weights themselves, at the rank of an equal share."""
    (judged,) = list_artifacts(done, "compression.model")
    points = {point["name"]: point for point in open_artifact(done, judged.id).result["points"]}
    network = copy.deepcopy(trained("gpt2", 60))
    artifacts = list_artifacts(done, f"compression.{method}")
    assert len(artifacts) == 2 * len(LINEARS)
    for artifact in artifacts:
        view = open_artifact(done, artifact.id)
        path = artifact.stage.rows["x"][0].site.removesuffix(":in:0")
        layer: Any = network.get_submodule(path)
        inputs, outputs = layer.weight.shape
        assert (view.result["width"], view.result["outputs"]) == (inputs, outputs)
        rank = int(0.1 * inputs * outputs / (inputs + outputs))
        left, right, mean = (torch.tensor(view.arrays[name].values) for name in ("left", "right", "mean"))
        cut = (left[:, :rank] @ right[:rank]).T
        with torch.no_grad():
            layer.bias += mean.float() @ (layer.weight - cut)
            layer.weight.copy_(cut)
    found = points[f"{method}, uniform, 0.1"]
    assert found["loss"]["value"] == pytest.approx(loss_of(network), rel=1e-4)
    with torch.no_grad():
        before, after = (
            net(texts()["new"][:N]).logits.log_softmax(-1) for net in (trained("gpt2", 60), network)
        )
    away = float((before.exp() * (before - after)).sum(-1).mean())
    assert found["divergence"]["value"] == pytest.approx(away, rel=0.01)
    assert away > 1e-7  # a network trained so briefly asks little of its blocks


def test_folders_say_what_was_judged(done: Path) -> None:
    (judged,) = list_artifacts(done, "compression.model")
    view = open_artifact(done, judged.id)
    points = {point["name"]: point for point in view.result["points"]}
    assert points["as it is"]["loss"]["value"] == pytest.approx(loss_of(trained("gpt2", 60)), rel=1e-5)
    names = ("two_sided, greedy, 0.1", "two_sided in 8 bits, uniform, 0.8", "quantised", "mixed_precision")
    for name in names:
        made = export(view, done / name.replace(" ", "_"), name)
        assert points[name]["kept_of_network"] == pytest.approx(
            made.stored_bytes / view.result["network_bytes"]
        )
        assert (
            0 <= made.tensor_bytes - made.stored_bytes < 12_000
        )  # the shared weight of the head is stored once
        again = load_compressed(made.folder)
        assert loss_of(again) == loss_of(made.network)
        assert points[name]["loss"]["value"] == pytest.approx(loss_of(made.network), rel=1e-4)


def test_a_head_that_shares_its_weight_is_left_to_itself(tmp_path: Path) -> None:
    outcome = run_serial(run_of(tmp_path, ("lm_head",)))
    (failure,) = outcome.stage_failures
    assert "lm_head" in failure.reason
    assert "that of another layer too" in failure.reason

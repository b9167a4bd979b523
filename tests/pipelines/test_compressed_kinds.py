"""Every kind of layer in a network from end to end: made, judged, and the same bits from a folder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.serial import run_serial
from subspan import list_artifacts, load_compressed, open_artifact
from tasks.export import export
from tests import factories
from tests.pipelines.runs import vectors_run

STAGES = {
    "codes": ("quantised", {"bits": 4, "group": 4}),
    "dictionaries": ("dictionary", {"kept": 0.9}),
    "mixed": ("mixed_precision", {}),
}


def test_every_kind(tmp_path: Path) -> None:
    stages = {
        name: {"method": f"compression.{method}", "sites": "**:in:0", "config": config}
        for name, (method, config) in STAGES.items()
    }
    stages["judged"] = {"method": "compression.model", "config": {"shares": [0.7], "samples": 200}}
    loss = {"kind": "classification", "label": "label"}
    run = vectors_run(tmp_path, 150, loss=loss, sites=["first:in:0", "last:in:0"], stages=stages)
    assert not run_serial(run).stage_failures
    (artifact,) = list_artifacts(tmp_path, "compression.model")
    view, data = open_artifact(tmp_path, artifact.id), factories.vectors(150)
    x, label = torch.stack([data[k][0] for k in range(150)]), torch.tensor([data[k][1] for k in range(150)])
    points = {point["name"]: point for point in view.result["points"]}
    assert set(points) == {"as it is"} | {method for method, _ in STAGES.values()}
    assert view.result["modules"] == ["first", "last"]
    with torch.no_grad():
        before = given(factories.squares(), x)
    with torch.no_grad():
        for name in set(points) - {"as it is"}:
            made = export(view, tmp_path / "exports" / name, name).network
            y, after = made(x), given(made, x)
            changed = [
                float((a - b).square().sum() / b.square().sum()) for a, b in zip(after, before, strict=True)
            ]
            at = list(points).index(name)
            assert view.arrays["output_error"].values[at].tolist() == pytest.approx(changed, rel=1e-4)
            if name == view.result["best"]:
                assert [layer["output_error"] for layer in view.result["layers"]] == pytest.approx(
                    changed, rel=1e-4
                )
            found = torch.nn.functional.cross_entropy(y, label)
            assert points[name]["loss"]["value"] == pytest.approx(float(found), rel=1e-4)
            stored = sum(t.numel() * t.element_size() for t in made.state_dict().values())
            assert points[name]["stored_bytes"] == stored
            again = load_compressed(tmp_path / "exports" / name, factories.squares(seed=1))
            assert torch.equal(again(x), y)
            assert torch.linalg.matrix_norm(y - factories.squares()(x)) < 0.3 * torch.linalg.matrix_norm(y)


def given(network: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What both layers of the network give."""
    first = network.get_submodule("first")(x)
    return [first, network.get_submodule("last")(first.relu())]


def test_layers_chosen_among_methods(tmp_path: Path) -> None:
    """Gradients tell how much errors of codes cost: codes and factors side by side, within the bytes that were asked for."""
    inputs, gradients = ["first:in:0", "last:in:0"], ["first:out:0", "last:out:0"]
    x = {"captures": ["vectors"], "sites": "**:in:0"}
    codes: dict[str, Any] = {"method": "compression.quantised", "inputs": {"x": x}}
    stages = {
        "two": {
            "method": "compression.two_sided",
            "inputs": {"x": x, "g": {"captures": ["vectors"], "sites": "**:out:0:grad"}},
        },
        "eight": codes | {"config": {"bits": 8, "group": None}},
        "two_bits": codes | {"config": {"bits": 2, "group": 8}},
        "judged": {
            "method": "compression.model",
            "config": {"kept": 0.25, "shares": [0.9], "samples": 200, "budget": "products"},
        },
    }
    loss = {"kind": "classification", "label": "label"}
    quantities = ["activation", "activation_gradient"]
    run = vectors_run(
        tmp_path, 150, loss=loss, sites=[*inputs, *gradients], quantities=quantities, stages=stages
    )
    assert not run_serial(run).stage_failures
    (artifact,) = list_artifacts(tmp_path, "compression.model")
    view = open_artifact(tmp_path, artifact.id)
    points = {point["name"]: point for point in view.result["points"]}
    small, large = points["of all methods, 0.25"], points["of all methods, 0.9"]
    biases = 4 * 24 / view.result["layers_bytes"]
    assert small["kept"] <= 0.25 + biases
    assert large["divergence"]["value"] < 0.01 * small["divergence"]["value"]
    assert small["divergence"]["value"] < 0.5 * points["two_sided, greedy, 0.25"]["divergence"]["value"]
    made = export(view, tmp_path / "small", "of all methods, 0.25")
    kinds = {layer.kind for layer in made.layers.values()}
    assert "quantised" in kinds
    x0 = torch.stack([factories.vectors(150)[k][0] for k in range(150)])
    assert torch.equal(load_compressed(made.folder, factories.squares(seed=1))(x0), made.network(x0))
    numbers = sum(layer.numbers for layer in made.layers.values())
    assert small["kept_numbers"] == pytest.approx(
        numbers / sum(p.numel() for p in factories.squares().parameters())
    )
    factors = points["two_sided, greedy, 0.25"]
    made = export(view, tmp_path / "factors", factors["name"])
    products = sum(p.numel() for p in made.network.parameters() if p.ndim > 1)
    assert factors["kept_products"] == pytest.approx(products / (2 * 8 * 16))
    assert points["quantised (bits: 8, group: None)"]["kept_products"] == 1
    assert view.result["best"] in {name for name, p in points.items() if p["kept_products"] <= 0.255}


def test_a_mixture_of_fewer_experts(tmp_path: Path) -> None:
    loss, network = (
        {"kind": "classification", "label": "label"},
        {"kind": "factory", "factory": "tests.factories:mixture"},
    )
    stages = {
        "merged": {
            "method": "compression.experts",
            "sites": "moe:in:0",
            "config": {"experts": 4, "groups": 2, "biases": True, "activation": "relu"},
        },
        "judged": {"method": "compression.model", "config": {"samples": 200}},
    }
    run = vectors_run(tmp_path, 150, loss=loss, sites=["moe:in:0"], model=network, stages=stages)
    assert not run_serial(run).stage_failures
    (artifact,) = list_artifacts(tmp_path, "compression.model")
    view, data, net = open_artifact(tmp_path, artifact.id), factories.vectors(150), factories.mixture()
    x, label = torch.stack([data[k][0] for k in range(150)]), torch.tensor([data[k][1] for k in range(150)])
    points = {point["name"]: point for point in view.result["points"]}
    made = export(view, tmp_path / "folder", "experts")
    moe = sum(p.numel() for p in net.get_submodule("moe").parameters())
    assert view.result["layers_bytes"] == 4 * moe
    assert points["experts"]["stored_bytes"] == made.layers["moe"].stored_bytes < 0.7 * 4 * moe
    with torch.no_grad():
        loss_now = torch.nn.functional.cross_entropy(made.network(x), label)
        again = load_compressed(tmp_path / "folder", factories.mixture(seed=1))
        assert torch.equal(again(x), made.network(x))
        near = torch.linalg.matrix_norm(made.network(x) - net(x)) / torch.linalg.matrix_norm(net(x))
    assert float(near) < 0.05  # each pair that was merged is nearly alike
    assert points["experts"]["loss"]["value"] == pytest.approx(float(loss_now), rel=1e-4)

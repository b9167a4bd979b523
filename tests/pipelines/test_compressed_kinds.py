"""Every kind of layer in a network from end to end: made, judged, and the same bits from a folder."""

from pathlib import Path

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
    with torch.no_grad():
        for name in set(points) - {"as it is"}:
            made = export(view, tmp_path / "exports" / name, name).network
            y = made(x)
            found = torch.nn.functional.cross_entropy(y, label)
            assert points[name]["loss"]["value"] == pytest.approx(float(found), rel=1e-4)
            stored = sum(t.numel() * t.element_size() for t in made.state_dict().values())
            assert points[name]["stored_bytes"] == stored
            again = load_compressed(tmp_path / "exports" / name, factories.squares(seed=1))
            assert torch.equal(again(x), y)
            assert torch.linalg.matrix_norm(y - factories.squares()(x)) < 0.3 * torch.linalg.matrix_norm(y)

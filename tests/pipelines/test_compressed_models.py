"""A network compressed from end to end: layers, the choice, the folder, and a process that has nothing but the folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import cli
from pipelines.serial import run_serial
from schemas.errors import NotFoundError, SpecError, UnknownNameError
from schemas.run import RunSpec
from subspan import list_artifacts, load_compressed, open_artifact
from tasks.export import compressed_artifact, export
from tests import factories
from tests.pipelines.runs import vectors_run

LINEARS = ["first:in:0", "last:in:0"]


def run_of(root: Path, **model: Any) -> RunSpec:
    stages = {
        "factors": {"method": "compression.low_rank", "sites": "**:in:0"},
        "smaller": {"method": "compression.model", "config": {"shares": [0.7], "samples": 200, **model}},
    }
    loss = {"kind": "classification", "label": "label"}
    return vectors_run(root, 150, loss=loss, sites=LINEARS, stages=stages)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compressed")
    outcome = run_serial(run_of(root))
    assert not outcome.stage_failures
    return root


def model_view(root: Path) -> Any:
    found = list_artifacts(root, "compression.model")
    (artifact,) = (one for one in found if one.stage.config["tolerated"] is None)
    return open_artifact(root, artifact.id)


def test_sizes_and_losses_are_those_of_the_networks(done: Path) -> None:
    """Measured again, by hand."""
    view = model_view(done)
    module, data = factories.squares(), factories.vectors(150)
    x = torch.stack([data[k][0] for k in range(150)])
    label = torch.tensor([data[k][1] for k in range(150)])
    points = {point["name"]: point for point in view.result["points"]}
    assert view.result["gives"] == "classes"
    assert view.result["judged_by"] == "loss"
    loss = torch.nn.functional.cross_entropy(module(x), label).detach()
    assert view.result["layers_bytes"] == 4 * sum(p.numel() for p in module.parameters())
    assert points["as it is"]["kept"] == 1
    assert points["as it is"]["agreement"]["value"] == 1
    assert points["as it is"]["loss"]["value"] == pytest.approx(float(loss), rel=1e-5)
    for name, point in points.items():
        if name == "as it is":
            continue
        made = export(view, done / "exports" / name.replace(" ", "_"), name)
        tensors = made.network.state_dict().values()
        assert made.stored_bytes == sum(t.numel() * t.element_size() for t in tensors)
        assert point["kept_of_network"] == pytest.approx(made.stored_bytes / view.result["network_bytes"])
        assert ("8 bits" in name) == any(t.dtype in (torch.int8, torch.uint8) for t in tensors)
        assert point["loss"]["low"] <= point["loss"]["value"] <= point["loss"]["high"]
    assert "150 of the 150 samples that judge them" in view.result["caveats"][0]


def test_the_folder_is_enough(done: Path) -> None:
    """In a process that can import torch and the loader, and nothing of extraction, engine or stores."""
    view, folder = model_view(done), done / "folder"
    made = export(view, folder)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.save(done / "expected.npy", made.network(x).numpy())
    np.save(done / "x.npy", x.numpy())
    code = (
        "import sys\n"
        "for name in ('extract', 'engine', 'methods', 'store'): sys.modules['tasks.' + name] = None\n"
        "import numpy as np, torch\n"
        "from tasks.compressed.files import load_compressed\n"
        "from tests.factories import squares\n"
        f"module = load_compressed({str(folder)!r}, squares(seed=1))\n"
        f"x = torch.from_numpy(np.load({str(done / 'x.npy')!r}))\n"
        f"assert np.array_equal(module(x).detach().numpy(), np.load({str(done / 'expected.npy')!r}))\n"
        "print(sum(t.numel() * t.element_size() for t in module.state_dict().values()))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == made.stored_bytes
    told = json.loads((folder / "compression.json").read_text())
    assert set(told["layers"]) == {layer["module"] for layer in view.result["layers"] if layer["kind"]}
    assert told["quality"]["name"] == view.result["best"]
    assert 0 <= made.tensor_bytes - made.stored_bytes < 2000  # the header of the file
    with pytest.raises(ValueError, match="give it as `network`"):
        load_compressed(folder)


def test_the_command(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = model_view(done)
    assert (
        cli.main(
            [
                "export",
                view.id,
                str(done / "by-command"),
                "--root",
                str(done),
                "--time",
                "--trust-code",
                "--json",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["candidate"] == view.result["best"]
    assert told["timed"]["ratio"] > 0
    assert (
        cli.main(["export", view.id, str(done / "by-command"), "--root", str(done), "--time", "--trust-code"])
        == 0
    )
    assert "times as fast" in capsys.readouterr().out


def test_what_cannot_be_exported(done: Path, tmp_path: Path) -> None:
    view = model_view(done)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="something else"):
        export(view, tmp_path)
    with pytest.raises(SpecError, match=r"mine\.txt is a file"):
        export(view, tmp_path / "mine.txt")
    export(view, tmp_path / "folder")
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"holds mine\.txt beside what an export wrote"):
        export(view, tmp_path / "folder")
    assert (tmp_path / "folder" / "mine.txt").read_text() == "mine"
    with pytest.raises(UnknownNameError, match="nearest"):
        export(view, tmp_path / "new", "low_rank, uniform, 0.9")
    other = open_artifact(done, list_artifacts(done, "compression.low_rank")[0].id)
    with pytest.raises(SpecError, match=r"expected one of compression\.model"):
        export(other, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="subspan export"):
        load_compressed(tmp_path)


def test_a_folder_that_is_named_by_a_detour(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link and by `..`: it is replaced by a whole one; the one where we are is not."""
    view, folder = model_view(done), tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for name in (tmp_path / "link", folder / "new" / ".."):
        export(view, name)
        assert {file.name for file in folder.iterdir()} == {"compressed.safetensors", "compression.json"}
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(folder)
    with pytest.raises(SpecError, match="where you are"):
        export(view, Path())
    assert {file.name for file in tmp_path.iterdir()} == {"folder", "link"}


def test_an_artifact_by_its_stage(done: Path, tmp_path: Path) -> None:
    run_serial(run_of(tmp_path))
    assert compressed_artifact(str(tmp_path), "smaller").id == model_view(tmp_path).id
    with pytest.raises(NotFoundError, match="smalle"):
        compressed_artifact(str(tmp_path), "smalle")
    made = export(model_view(tmp_path), tmp_path / "out")
    assert (made.folder / "compressed.safetensors").stat().st_mode == (
        made.folder / "compression.json"
    ).stat().st_mode


def test_samples_that_layers_were_made_from_are_told(tmp_path: Path) -> None:
    """Of another capture too: what counts is which samples these are."""
    run = run_of(tmp_path).model_dump(mode="json")
    judged = run["captures"]["vectors"]
    made = judged | {"loss": None, "data": judged["data"] | {"subset": {"max_samples": 90}}}
    judged["data"] = judged["data"] | {"subset": {"skip_samples": 60}}
    run["captures"] = {"judged": judged, "made": made}
    del run["stages"]["factors"]["sites"]
    run["stages"]["factors"] |= {"inputs": {"x": {"captures": ["made"], "sites": "**:in:0"}}}
    run["stages"]["smaller"]["inputs"] = {"network": {"captures": ["judged"]}}
    assert not run_serial(RunSpec.model_validate(run)).stage_failures
    view = model_view(tmp_path)
    assert view.result["n_samples"] == 90
    assert "made from 30 of the 90 samples" in view.result["caveats"][0]
    assert not any("other weights" in caveat for caveat in view.result["caveats"])


def test_layers_of_another_network_are_told(tmp_path: Path) -> None:
    """Whose layers have the same names and shapes."""
    run = run_of(tmp_path).model_dump(mode="json")
    judged = run["captures"]["vectors"]
    other = judged | {"model": judged["model"] | {"arguments": {"seed": 1}}}
    run["captures"] = {"judged": judged, "other": other}
    del run["stages"]["factors"]["sites"]
    run["stages"]["factors"] |= {"inputs": {"x": {"captures": ["other"], "sites": "**:in:0"}}}
    run["stages"]["smaller"]["inputs"] = {"network": {"captures": ["judged"]}}
    assert not run_serial(RunSpec.model_validate(run)).stage_failures
    told = model_view(tmp_path).result["caveats"]
    assert any(
        "2 of the 2 artifacts of layers were made from a network of other weights" in one for one in told
    )


def test_a_share_that_cannot_be_met(tmp_path: Path) -> None:
    outcome = run_serial(run_of(tmp_path, kept=0.05))
    assert any("cannot be met" in failure.reason for failure in outcome.stage_failures)


def test_the_smallest_that_is_good_enough(done: Path) -> None:
    """The same candidates, chosen by what is tolerated; nothing runs again but the choice."""
    assert not run_serial(run_of(done, tolerated=0.5)).stage_failures
    views = [open_artifact(done, artifact.id) for artifact in list_artifacts(done, "compression.model")]
    view = next(v for v in views if v.artifact.stage.config["tolerated"] == 0.5)
    points = {point["name"]: point for point in view.result["points"]}
    most = points["as it is"]["loss"]["value"] + 0.5
    enough = [p for name, p in points.items() if p["loss"]["value"] <= most and name != "as it is"]
    assert points[view.result["best"]]["stored_bytes"] == min(p["stored_bytes"] for p in enough)
    run_serial(run_of(done, tolerated=0.0))
    none = [open_artifact(done, a.id) for a in list_artifacts(done, "compression.model")]
    strict = next(v for v in none if v.artifact.stage.config["tolerated"] == 0.0)
    better = [name for name in points if points[name]["loss"]["value"] <= most - 0.5 and name != "as it is"]
    assert bool(strict.result["best"]) == bool(better)
    assert any("tolerate more" in note for note in strict.result["caveats"]) == (not better)

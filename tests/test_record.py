"""Recordings of a training: what is in them, what a kill leaves, and captures of them and of checkpoints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import subspan
from pipelines.plan import make_plan
from pipelines.serial import run_serial
from schemas.errors import DataError, ModelError, SpecError, UnknownNameError
from schemas.gradients import Kronecker
from schemas.run import RunSpec
from tests.pipelines.runs import store_bytes

ALL = ("weight", "update", "gradient")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def train(
    root: Path, steps: int = 20, name: str = "it", pause: float = 0.0, **options: Any
) -> list[dict[str, Tensor]]:
    """Plain steps of a training; what was there after each."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    seen = []
    with subspan.Recorder(root, name, model, **{"quantities": ALL, **options}) as recorder:
        for step in range(steps):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            recorder.before_step()
            optimizer.step()
            recorder.record(step, loss=loss.item())
            time.sleep(pause)
            after = {f"{n}:weight": p.detach().clone() for n, p in model.named_parameters()}
            after |= {f"{n}:update": p.detach() - before[n] for n, p in model.named_parameters()}
            seen.append(
                after
                | {f"{n}:grad": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            )
    return seen


def run_of(
    root: Path, source: dict[str, Any], stages: dict[str, Any] | None = None, **request: Any
) -> RunSpec:
    capture = {
        "model": {"kind": "recorded"},
        "data": {"source": source},
        "store": {"shard_rows": 4},
        **request,
    }
    return RunSpec.model_validate(
        {
            "name": "steps",
            "root": str(root),
            "captures": {"steps": capture},
            "stages": stages or {},
            "report": None,
        }
    )


def recording(root: Path, **options: Any) -> RunSpec:
    return run_of(root, {"kind": "recording", "path": str(root / "recordings" / "it")}, **options)


def test_a_capture_holds_every_step(tmp_path: Path) -> None:
    seen = train(tmp_path)
    outcome = run_serial(recording(tmp_path))
    capture = subspan.open_capture(tmp_path, outcome.captures[0].id)
    assert set(capture.sites) == set(seen[0])
    for site in capture.sites:
        quantity = {"weight": "weight", "update": "update", "grad": "parameter_gradient"}[
            site.rpartition(":")[2]
        ]
        found = capture.site(site)[quantity]
        np.testing.assert_array_equal(
            found.values, torch.stack([row[site].flatten() for row in seen]).numpy()
        )
        assert tuple(found.attrs["shape"]) == tuple(seen[0][site].shape)
    assert capture.samples["step"].tolist() == list(range(20))
    assert capture.samples["loss"].notna().all()


def test_stages_read_them(tmp_path: Path) -> None:
    train(tmp_path, 30)
    stages = {
        "path": {"method": "gradients.trajectory", "sites": "0.weight:weight"},
        "early": {"method": "gradients.early_final", "sites": "0.weight:weight", "config": {"rank": 2}},
        "overlap": {"method": "gradients.dominant_overlap", "sites": "0.weight:grad", "config": {"rank": 2}},
    }
    outcome = run_serial(recording(tmp_path, stages=stages))
    assert not outcome.stage_failures
    results = {a.stage: subspan.open_artifact(tmp_path, a.id).result for a in outcome.artifacts}
    assert (results["early"]["rows"], results["early"]["columns"]) == (6, 4)
    assert results["path"]["n_rows"] == 30
    for made in outcome.artifacts:
        steps = subspan.open_artifact(tmp_path, made.id).arrays["step"].values
        assert steps.tolist() == list(range(30)), made.stage


def test_the_training_is_not_changed(tmp_path: Path) -> None:
    recorded = train(tmp_path)
    plain = train(tmp_path, name="other", every=7, quantities=("weight",))
    for a, b in zip(recorded, plain, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert len(list((tmp_path / "recordings" / "other").glob("step-*.npz"))) == 3


def test_projected_steps_keep_their_differences(tmp_path: Path) -> None:
    train(tmp_path, keep=Kronecker(dimension=3))
    capture = subspan.open_capture(tmp_path, run_serial(recording(tmp_path)).captures[0].id)
    weight = capture.site("0.weight:weight")["weight"].values
    update = capture.site("0.weight:update")["update"].values
    assert weight.shape == (20, 9)
    np.testing.assert_allclose(np.diff(weight, axis=0), update[1:], rtol=1e-3, atol=1e-5)


@pytest.mark.alone
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    train(tmp_path / "quiet", 60)
    code = f"from pathlib import Path; from tests.test_record import train; train(Path({str(tmp_path / 'killed')!r}), 60, pause=0.02)"
    process = subprocess.Popen([sys.executable, "-c", code])
    folder = tmp_path / "killed" / "recordings" / "it"
    while process.poll() is None and not (folder.exists() and len(list(folder.glob("step-*.npz"))) > 10):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("step-*.npz")}
    assert 10 < len(before) < 60
    train(tmp_path / "killed", 60)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    quiet, killed = (run_serial(recording(tmp_path / which)).captures[0].id for which in ("quiet", "killed"))
    assert quiet == killed
    stores = [store_bytes(tmp_path / which, quiet) for which in ("quiet", "killed")]
    for store in stores:
        del store["zarr.json"]  # names the recording's path
    assert stores[0] == stores[1]


def test_what_a_recorder_refuses(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(UnknownNameError, match=r"no parameter 'head\.\*'"):
        subspan.Recorder(tmp_path, "it", model, parameters=["head.*"])
    with pytest.raises(SpecError, match="every=0"):
        subspan.Recorder(tmp_path, "it", model, every=0)
    recorder = subspan.Recorder(tmp_path, "it", model, quantities=("gradient",))
    with pytest.raises(ModelError, match="before_step"):
        recorder.record(0)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "x" * 65])
def test_a_name_is_one_of_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="a recording is called"):
        subspan.Recorder(tmp_path / "r", name, network())
    assert not (tmp_path / "r").exists()


def test_a_label_whose_name_no_file_can_have_is_refused_before_it_is_written(tmp_path: Path) -> None:
    recorder = subspan.Recorder(tmp_path, "r", network())
    with pytest.raises(DataError, match="a label is called 'a/b c'"):
        recorder.record(0, **{"a/b c": 1.0})
    recorder.record(0, loss=1.0)
    assert recorder.last_step == 0


def test_nothing_to_record(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing is to be recorded"):
        subspan.Recorder(tmp_path, "r", network(), parameters=[])
    with pytest.raises(SpecError, match="names of 0 parameters"):
        subspan.Recorder(tmp_path, "r", nn.ReLU())


@pytest.mark.parametrize("step", [4.0, -1, "4", None])
def test_a_step_is_a_whole_number(tmp_path: Path, step: Any) -> None:
    with pytest.raises(SpecError, match="expected a whole number"):
        subspan.Recorder(tmp_path, "it", network()).record(step)


def test_labels_are_single_numbers(tmp_path: Path) -> None:
    recorder = subspan.Recorder(tmp_path, "it", network())
    recorder.record(0, loss=torch.ones(1, requires_grad=True))
    for label in (torch.ones(3), "low", None):
        with pytest.raises(SpecError, match="a label of a step is one number"):
            recorder.record(1, loss=label)  # type: ignore[arg-type]
    assert recorder.last_step == 0


def test_another_training_is_not_dropped_in_silence(tmp_path: Path) -> None:
    train(tmp_path, steps=4)
    train(tmp_path, steps=6)  # the same, longer
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(1.5)  # type: ignore[index,operator]
    recorder = subspan.Recorder(tmp_path, "it", model, quantities=ALL)
    model(torch.ones(2, 4)).sum().backward()
    recorder.before_step()
    with pytest.raises(SpecError, match="it is of another training; choose another name"):
        recorder.record(0)


def test_a_recording_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    model = network()
    subspan.Recorder(tmp_path, "it", model, keep=Kronecker(dimension=2)).record(0)
    with pytest.raises(SpecError, match="other parameters, quantities, form or seed"):
        subspan.Recorder(tmp_path, "it", model, keep=Kronecker(dimension=2), seed=1)
    recorder = subspan.Recorder(tmp_path, "it", model, keep=Kronecker(dimension=2))
    assert recorder.last_step == 0
    model[0].weight = nn.Parameter(torch.zeros(6, 4))  # type: ignore[index]
    recorder.record(1)
    with np.load(tmp_path / "recordings" / "it" / "step-000000000001.npz") as held:
        assert not held["0.weight:weight"].any()
    model[0].weight = nn.Parameter(torch.zeros(5, 4))  # type: ignore[index]
    with pytest.raises(ModelError, match="another shape"):
        recorder.record(2)


class WithLoss(nn.Module):
    """A network as the Trainer takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.inner(x), labels)}


def test_a_trainer_is_recorded(tmp_path: Path) -> None:
    """Plain steps downhill, of two batches each, with clipped gradients: what a step changed is the rate times its gradient."""
    from transformers import Trainer, TrainingArguments

    rng = torch.Generator().manual_seed(0)
    rows = [
        {"x": torch.randn(4, generator=rng) * 9, "labels": int(torch.randint(0, 2, (1,), generator=rng))}
        for _ in range(32)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.5,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    model = WithLoss()
    before = {name: p.detach().flatten().clone().numpy() for name, p in model.named_parameters()}
    recorder = subspan.Recorder(tmp_path, "it", model, quantities=ALL)
    callback = subspan.RecorderCallback(recorder)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])
    trainer.train()
    capture = subspan.open_capture(tmp_path, run_serial(recording(tmp_path)).captures[0].id)
    assert capture.samples["step"].tolist() == list(range(1, 9))
    gradients, squares = {}, 0.0
    for name, parameter in model.named_parameters():
        gradients[name] = capture.site(f"{name}:grad")["parameter_gradient"].values
        updates = capture.site(f"{name}:update")["update"].values
        weights = capture.site(f"{name}:weight")["weight"].values
        squares = squares + np.square(gradients[name]).sum(1)
        np.testing.assert_allclose(updates, -0.05 * gradients[name], rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(weights[0] - before[name], updates[0], atol=1e-7)
        np.testing.assert_array_equal(weights[-1], parameter.detach().flatten().numpy())
    assert np.sqrt(squares).max() == pytest.approx(0.5, rel=1e-4)  # clipped
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert capture.samples["loss"].tolist()[1:] == losses[:-1]  # what was logged last goes with a step


class TestCheckpoints:
    def write(self, folder: Path, steps: int = 5) -> list[dict[str, Tensor]]:
        folder.mkdir()
        states = []
        for step in range(steps):
            states.append({n: p + step * torch.ones_like(p) for n, p in network().state_dict().items()})
            save_file(states[-1], folder / f"checkpoint-{step * 50}.safetensors")
        return states

    def run(self, tmp_path: Path, pattern: str = "*.safetensors", **options: Any) -> RunSpec:
        return run_of(
            tmp_path / "out", {"kind": "checkpoints", "path": f"{tmp_path}/weights/{pattern}", **options}
        )

    def test_weights_and_updates(self, tmp_path: Path) -> None:
        states = self.write(tmp_path / "weights")
        run = self.run(tmp_path, quantities=["weight", "update"], parameters=["*.weight"])
        capture = subspan.open_capture(tmp_path / "out", run_serial(run).captures[0].id)
        assert set(capture.sites) == {f"{k}.weight:{q}" for k in (0, 2) for q in ("weight", "update")}
        rows = capture.site("0.weight:weight")["weight"].values
        np.testing.assert_array_equal(rows, torch.stack([s["0.weight"].flatten() for s in states]).numpy())
        update = capture.site("0.weight:update")["update"].values
        np.testing.assert_allclose(update, np.concatenate([rows[:1] * 0, np.diff(rows, axis=0)]))
        assert capture.samples["step"].tolist() == [0, 50, 100, 150, 200]

    def test_results_name_the_steps(self, tmp_path: Path) -> None:
        self.write(tmp_path / "weights")
        stages = {"rank": {"method": "gradients.update_structure", "sites": "0.weight:update"}}
        source = {"kind": "checkpoints", "path": f"{tmp_path}/weights/*", "quantities": ["update"]}
        outcome = run_serial(run_of(tmp_path / "out", source, stages))
        view = subspan.open_artifact(tmp_path / "out", outcome.artifacts[0].id)
        assert view.arrays["step"].values.tolist() == [0, 50, 100, 150, 200]

    def test_one_of_another_shape_fails_and_others_are_kept(self, tmp_path: Path) -> None:
        self.write(tmp_path / "weights")
        torch.save({"0.weight": torch.ones(3, 3)}, tmp_path / "weights" / "checkpoint-500.pt")
        capture = subspan.open_capture(tmp_path / "out", run_serial(self.run(tmp_path, "*")).captures[0].id)
        assert [f.key for f in capture.failures] == ["checkpoint-500.pt"]
        assert np.isfinite(capture.site("0.weight:weight")["weight"].values[:5]).all()

    def test_files_that_cannot_be_ordered_or_read(self, tmp_path: Path) -> None:
        self.write(tmp_path / "weights", 2)
        (tmp_path / "weights" / "other-50.pt").write_bytes(b"no tensors")
        with pytest.raises(DataError, match="both of step 50"):
            make_plan(self.run(tmp_path, "*"))
        (tmp_path / "weights" / "other-50.pt").rename(tmp_path / "weights" / "final.pt")
        with pytest.raises(DataError, match="holds no number"):
            make_plan(self.run(tmp_path, "*"))

    def test_recorded_models_go_with_steps_only(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="go together"):
            run_of(tmp_path, {"kind": "digits"})

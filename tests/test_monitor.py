"""A training that is watched: what is measured, that nothing of it changes, what is told and when."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subspan
from benchmarks.training_failure import KINDS, LOST, digits, failing
from benchmarks.training_failure import train as descend
from pipelines.serial import run_serial
from schemas.errors import DataError, SpecError, UnknownNameError
from schemas.training import Limits, TrainingEvent
from tests.test_record import WithLoss, recording

SHORT = Limits(window=10, warmup=5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 80), nn.ReLU(), nn.Linear(80, 70), nn.Dropout(0.2), nn.Linear(70, 3, bias=False)
    )


def train(
    root: Path,
    watched: bool = True,
    steps: int = 30,
    growth: float = 1.0,
    seen: list[TrainingEvent] | None = None,
    **options: Any,
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Steps with dropout and momentum; weights after them, and what the monitor gave."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    recorder = subspan.Recorder(root, "it", model, ("4.weight",), ("weight",))
    monitor = subspan.TrainingMonitor(model, on_event=None if seen is None else seen.append, **options)
    if not watched:
        monitor.close()
    given = []
    with recorder, monitor:
        for step in range(steps):
            x = torch.randn(100, 6)
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            numbers = monitor.observe(step, loss) if watched else {}
            optimizer.param_groups[0]["lr"] *= growth
            optimizer.step()
            recorder.record(step, **numbers)
            given.append(numbers)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())  # type: ignore[attr-defined]
    return [p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()], given


def test_the_training_is_not_changed(tmp_path: Path) -> None:
    watched, _ = train(tmp_path / "a", most_rows=7)
    plain, _ = train(tmp_path / "b", watched=False)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))


def test_numbers_are_those_of_plain_loops() -> None:
    model = network().eval()  # no dropout, so that a forward can be made again
    x = torch.randn(40, 6)
    with subspan.TrainingMonitor(model) as monitor:
        (model(x[:20]).square().sum()).backward()
        (
            model(x[20:]).square().sum()
        ).backward()  # adds to the gradients; rows are those of the first forward
        found = monitor.observe(0, 1.5)
    gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    assert found["gradient_norm"] == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    assert (found["loss"], found["not_finite"]) == (1.5, 0.0)
    rows, layers = x[:20], {"0": x[:20], "2": model[:2](x[:20]), "4": model[:4](x[:20])}
    for name, given in layers.items():
        weight = model.get_submodule(name).get_parameter("weight").detach().double().numpy()
        direction = np.linalg.svd(weight)[2][0]
        rows = given.detach().double().numpy()
        side = [row @ direction - (rows.min() >= 0) * row.mean() * direction.sum() for row in rows]
        up = sum(s > 0 for s in side)
        assert found[f"alignment.{name}"] == pytest.approx(max(up, 20 - up) / 20, abs=0.051), name
        s = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        share = s[s > 1e-12] / s.sum()
        rank = math.exp(-sum(p * math.log(p) for p in share))
        assert found[f"rank.{name}"] == pytest.approx(rank, rel=1e-6)


def test_planted_alignment() -> None:
    model = nn.Sequential(nn.Linear(100, 90))
    with torch.no_grad():
        model[0].weight += 5 * torch.outer(torch.randn(90), torch.ones(100)) / 100
    with subspan.TrainingMonitor(model, most_rows=2000) as monitor:
        model(torch.randn(2000, 100) + 1).sum().backward()
        assert monitor.observe(0)["alignment.0"] > 0.99
        model(torch.randn(2000, 100)).sum().backward()
        assert monitor.observe(1)["alignment.0"] < 0.55
    assert monitor.events == []


def test_layers_are_measured_now_and_then() -> None:
    model, names = network(), ("alignment.2", "rank.2")
    with subspan.TrainingMonitor(model, layers=("2",), every=3) as monitor:
        for step in range(7):
            model(torch.randn(9, 6)).sum().backward()
            found = monitor.observe(step)
            assert [math.isnan(found[name]) for name in names] == [step % 3 > 0] * 2
            assert math.isfinite(found["gradient_norm"])
            assert math.isnan(found["loss"])
        with torch.no_grad():
            model(torch.randn(9, 6))
        assert math.isnan(monitor.observe(7)["rank.2"])
    assert set(found) == {"loss", "gradient_norm", "not_finite", *names}
    assert not monitor.events


@pytest.mark.parametrize("loss", [math.nan, math.inf, torch.tensor(math.nan)])
@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_is_not_finite_is_an_event(loss: Any, first: bool) -> None:
    seen: list[TrainingEvent] = []
    model = network()
    with subspan.TrainingMonitor(model, on_event=seen.append) as monitor:
        for step, value in enumerate([loss, loss, 1.0, loss] if first else [1.0, loss, loss]):
            model(torch.randn(9, 6)).sum().backward()
            monitor.observe(step, value)
    assert [e.step for e in seen] == ([0, 3] if first else [1])
    assert all((e.monitor, e.grade, e.layer) == ("not_finite", "alarm", None) for e in seen)
    assert monitor.events == seen


def test_a_loss_that_is_given_now_and_then_is_no_event() -> None:
    model = network()
    with subspan.TrainingMonitor(model) as monitor:
        for step in range(6):
            model(torch.randn(9, 6)).sum().backward()
            found = monitor.observe(step, None if step % 3 else 1.0)
            assert found["not_finite"] == 0
    assert monitor.events == []


def test_gradients_and_inputs_that_are_not_finite_are_events() -> None:
    model = network()
    with subspan.TrainingMonitor(model, layers=()) as monitor:
        (model(torch.randn(9, 6)).sum() * math.inf).backward()
        found = monitor.observe(0, 1.0)
    assert 0 < found["not_finite"] < 1
    assert [e.monitor for e in monitor.events] == ["not_finite"]
    TrainingEvent.model_validate_json(monitor.events[0].model_dump_json())
    with subspan.TrainingMonitor(network(), limits=SHORT) as other:
        network_input = torch.full((9, 6), math.nan)
        other._inputs["0"] = network_input
        found = other.observe(0)
    assert found["not_finite"] == 1
    assert math.isnan(found["alignment.0"])


def test_a_loss_that_is_not_known_is_no_event() -> None:
    model = network()
    with subspan.TrainingMonitor(model) as monitor:
        found = [monitor.observe(step, None if step % 2 else 1.0)["loss"] for step in range(6)]
        assert monitor.events == []
        monitor.observe(6, math.nan)
    assert np.isnan(found).tolist() == [False, True] * 3
    assert [one.step for one in monitor.events] == [6]


def test_parameters_that_are_trained_later_count() -> None:
    model = network()
    model[0].requires_grad_(False)
    with subspan.TrainingMonitor(model) as monitor:
        model[0].weight.requires_grad_(True)
        model.append(nn.Linear(3, 2))
        for step in range(2):
            model.zero_grad()
            model(torch.randn(20, 6)).square().sum().backward()
            found = monitor.observe(step, 1.0)["gradient_norm"]
            norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
            assert found == pytest.approx(float(norms.norm()), rel=1e-5)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())  # type: ignore[attr-defined]


def test_the_norm_of_finite_gradients_is_finite() -> None:
    """Squares of these leave float32."""
    model = nn.Linear(6, 3)
    with subspan.TrainingMonitor(model, limits=SHORT) as monitor:
        for step in range(20):
            model.zero_grad()
            (model(torch.randn(20, 6)).square().mean() * (1e25 if step > 15 else 1)).backward()
            found = monitor.observe(step)["gradient_norm"]
            gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
            assert found == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-5)
    assert [one.monitor for one in monitor.events] == ["gradient_norm"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_of_the_model_is_not_watched(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, rows = network().eval(), torch.randn(20, 6)
    with subspan.TrainingMonitor(model) as monitor:
        other = copied(model)
        other(torch.full((20, 6), 5.0)).sum().backward()
        other.zero_grad()
        model(rows).sum().backward()
        found = monitor.observe(0, 1.0)
    model.zero_grad()
    with subspan.TrainingMonitor(model) as monitor:
        model(rows).sum().backward()
        assert monitor.observe(0, 1.0) == found


def test_an_event_that_raises_ends_the_training() -> None:
    def stop(event: TrainingEvent) -> None:
        raise RuntimeError(event.reason)

    with (
        subspan.TrainingMonitor(network(), on_event=stop) as monitor,
        pytest.raises(RuntimeError, match="not finite"),
    ):
        monitor.observe(0, math.nan)
    assert len(monitor.events) == 1


def test_a_network_that_ran_compiled_before_is_told() -> None:
    """New hooks are ignored by code that is compiled already; a monitor that is made first sees the layers."""
    x = torch.randn(16, 8)
    for first in (True, False):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        monitors = [subspan.TrainingMonitor(model)] if first else []
        compiled = torch.compile(model, backend="eager")
        compiled(x).sum().backward()
        if first:
            assert np.isfinite(monitors[0].observe(0, 1.0)["alignment.0"])
            continue
        monitor = subspan.TrainingMonitor(model)
        compiled(x).sum().backward()
        with pytest.warns(UserWarning, match="make the monitor first"):
            assert np.isnan(monitor.observe(0, 1.0)["alignment.0"])
        monitor.observe(1, 1.0)  # told once


def test_what_a_monitor_refuses() -> None:
    with pytest.raises(UnknownNameError, match=r"no linear layer 'head\.\*'"):
        subspan.TrainingMonitor(network(), layers=("head.*",))
    with pytest.raises(SpecError, match="every=0"):
        subspan.TrainingMonitor(network(), every=0)
    with pytest.raises(SpecError, match="most_rows=1"):
        subspan.TrainingMonitor(network(), most_rows=1)
    with pytest.raises(SpecError, match="no parameter that is trained"):
        subspan.TrainingMonitor(network().requires_grad_(False))
    with pytest.raises(DataError, match="a label is called"):
        subspan.TrainingMonitor(nn.ModuleDict({"x" * 130: nn.Linear(2, 2)}))
    with subspan.TrainingMonitor(network()) as monitor, pytest.raises(SpecError, match="one number"):
        monitor.observe(0, torch.ones(3))


def test_integers_convolutions_and_turned_layers() -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(nn.Embedding(10, 6), Conv1D(70, 6))
    with subspan.TrainingMonitor(model) as monitor:
        model(torch.randint(0, 10, (4, 5))).sum().backward()
        found = monitor.observe(0)
    assert 0.5 <= found["alignment.1"] <= 1
    assert 1 <= found["rank.1"] <= 6
    with subspan.TrainingMonitor(nn.Conv1d(1, 1, 1)) as other:
        assert set(other.observe(0)) == {"loss", "gradient_norm", "not_finite"}


@pytest.mark.parametrize("growth", [1.0, 1.3])
def test_a_stage_tells_what_the_monitor_told(tmp_path: Path, growth: float) -> None:
    """The same events of the same numbers, through a recording, its capture and a stage."""
    seen: list[TrainingEvent] = []
    _, given = train(tmp_path, steps=40, growth=growth, seen=seen, limits=SHORT)
    stages = {
        "watch": {
            "method": "anomaly.training",
            "sites": "4.weight:weight",
            "config": {"window": 10, "warmup": 5},
        }
    }
    outcome = run_serial(recording(tmp_path, stages=stages))
    assert not outcome.stage_failures
    capture = subspan.open_capture(tmp_path, outcome.captures[0].id)
    for name in given[0]:
        np.testing.assert_array_equal(capture.samples[name], [numbers[name] for numbers in given])
    result = subspan.open_artifact(tmp_path, outcome.artifacts[0].id).result
    failed = len(capture.failures)
    told = [TrainingEvent.model_validate(event) for event in result["events"]]
    assert told == [event for event in seen if event.step < 40 - failed]
    assert bool(seen) == (growth > 1)
    assert bool(result["first_alarm"]) == (growth > 1)


def test_a_trainer_is_watched(tmp_path: Path) -> None:
    """Two batches a step, gradients clipped, seldom logged: norms are those before clipping, losses those of each step."""
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
        optim="sgd",
        max_grad_norm=0.01,
        logging_steps=100,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    model = WithLoss()
    monitor = subspan.TrainingMonitor(model)
    recorder = subspan.Recorder(tmp_path, "it", model, quantities=("weight", "gradient"))
    Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        callbacks=[subspan.MonitorCallback(monitor, recorder)],
    ).train()
    samples = subspan.open_capture(tmp_path, run_serial(recording(tmp_path)).captures[0].id).samples
    assert samples["step"].tolist() == list(range(1, 9))
    assert samples["loss"].notna().all()
    assert samples["loss"].nunique() == 8
    assert (samples["gradient_norm"] > 0.011).all()
    assert samples["rank.inner.2"].between(1, 3).all()  # of four rows about their mean
    assert not model._forward_hooks
    assert monitor.events == []


@pytest.mark.parametrize("kind", KINDS)
def test_failures_are_told_before_the_loss_is_lost(kind: str) -> None:
    """Residual networks on digits, the rate grows until the loss is lost; and the same with a rate that is large, but stays."""
    found = failing(digits(), kind, seed=0, width=48, layers=("6",))
    assert found["lead"] is not None
    assert found["lead"] > 0
    healthy = descend(digits(), kind, 0, 0.05, 1.0, 300, width=48, layers=("6",))
    assert len(healthy.losses) == 300
    assert max(healthy.losses) < LOST
    assert [e for e in healthy.events if e.grade == "alarm"] == []

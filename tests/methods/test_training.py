"""Trainings that left their way, judged afterwards: planted failures, what is missing, and what cannot be read."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from schemas.training import Limits, TrainingEvent
from tasks.methods.anomaly import training
from tasks.methods.contract import Block, Inputs
from tasks.methods.training_watch import TrainingWatch
from tests.methods import cases
from tests.methods.cases import Answer, Case

STEPS, BROKEN = 120, 90


def series(broken: int = BROKEN, n: int = STEPS) -> dict[str, Tensor]:
    """A loss that falls with noise and doubles each step from some step on, norms that rise with it, a layer that aligns before."""
    rng = torch.Generator().manual_seed(0)
    t = torch.arange(n, dtype=torch.float64)

    def noise() -> Tensor:
        return (0.1 * torch.randn(n, generator=rng, dtype=torch.float64)).exp()

    late = (t - broken).clamp(min=0)
    return {
        "loss": (0.5 + 1.8 * (-t / 20).exp()) * noise() * 2**late,
        "gradient_norm": noise() * 2**late,
        "not_finite": torch.zeros(n, dtype=torch.float64),
        "alignment.a.b": (0.6 + 0.4 * (t > broken - 20)).double(),
        "rank.a.b": 20 * noise() * 0.6**late,
        "other": t,
    }


def told(
    labels: dict[str, Tensor], rows: Tensor | None = None, site: str = "w:weight", **options: Any
) -> Answer:
    """The method over steps that come in another order than that of the capture."""
    n = len(next(iter(labels.values())))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    x = torch.ones(n, 3) if rows is None else rows
    labels = {"step": 10.0 * torch.arange(n, dtype=torch.float64), **labels}
    block = Block({"x": x[order]}, order, 0 * order, order, {k: v[order] for k, v in labels.items()})
    inputs = Inputs({"x": x.shape[1]}, n, n, sites={"x": site})
    return cases.run(Case(training, training.Config(**options), inputs, block))


def live(labels: dict[str, Tensor], limits: Limits) -> list[TrainingEvent]:
    """What a monitor tells of the same numbers."""
    watch, n = TrainingWatch(limits), len(labels["loss"])
    return [e for k in range(n) for e in watch.take(10 * k, {m: float(v[k]) for m, v in labels.items()})[1]]


def test_a_planted_failure_is_told_before_the_loss_is_lost() -> None:
    answer = told(series())
    result = answer.result
    assert list(result.events) == live(series(), Limits())
    first = {(s.monitor, s.layer): s.first for s in result.series}
    assert 10 * BROKEN < first["gradient_norm", None] <= 10 * (BROKEN + 8)
    assert 10 * BROKEN < first["loss", None] <= 10 * (BROKEN + 8)
    assert 10 * (BROKEN - 20) < first["alignment", "a.b"] < 10 * BROKEN
    assert first["rank", "a.b"] is not None
    assert first["not_finite", None] is None
    assert result.lost_above == 3 * float(series()["loss"][0])
    lost = int(torch.nonzero(series()["loss"] > result.lost_above)[0])
    assert result.lost_at == 10 * lost
    assert result.first_alarm == min(e.step for e in result.events if e.grade == "alarm")
    assert result.lead == result.lost_at - result.first_alarm
    assert (result.n_alarms, result.n_notices) == (2, 2)
    assert answer.arrays["value"].shape == (STEPS, len(result.series))
    assert answer.arrays["step"].tolist() == list(range(0, 10 * STEPS, 10))
    k = [s.monitor for s in result.series].index("gradient_norm")
    excess = answer.arrays["excess"][:, k]
    assert int(torch.nonzero(excess > Limits().limit)[0]) * 10 == first["gradient_norm", None]
    assert answer.arrays["raised"][:, k].any()
    torch.testing.assert_close(answer.arrays["value"][:, k], series()["gradient_norm"])


def test_a_loss_that_falls_fast_was_never_lost() -> None:
    result = told({"loss": 0.5 ** torch.arange(30, dtype=torch.float64)}).result
    assert (result.lost_above, result.lost_at) == (3.0, None)


def test_a_healthy_training_has_no_events() -> None:
    healthy = {k: v for k, v in series(broken=10**6).items() if k != "alignment.a.b"}
    result = told(healthy).result
    assert result.events == ()
    assert (result.first_alarm, result.lead, result.lost_at) == (None, None, None)
    assert result.caveats == ()


def test_notices_alone_are_no_evidence() -> None:
    aligned = series(broken=10**6) | {"alignment.a.b": series()["alignment.a.b"]}
    result = told(aligned).result
    assert [e.grade for e in result.events] == ["notice"]
    assert result.first_alarm is None
    assert "no evidence of a failure by themselves" in result.caveats[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(value: float) -> None:
    labels = {"loss": series()["loss"][:80].clone()}
    labels["loss"][60:] = value
    result = told(labels).result
    assert [(e.step, e.monitor, e.grade) for e in result.events] == [(600, "not_finite", "alarm")]
    assert (result.lost_at, result.lead) == (600, 0)
    assert "no gradient_norm, not_finite" in result.caveats[0]
    unknown = {"loss": torch.full((30,), math.nan, dtype=torch.float64)}
    assert told(unknown).result.events == ()  # never known


def test_recorded_gradients_have_norms() -> None:
    labels = {"train": series(broken=60)["loss"][:BROKEN]}
    grown = torch.ones(BROKEN, 4)
    grown[60:] *= 2.0 ** torch.arange(BROKEN - 60)[:, None]
    result = told(labels, grown, "head.weight:grad", loss="train").result
    assert [(s.monitor, s.layer) for s in result.series][1:] == [
        ("loss", None),
        ("gradient_norm", "head.weight"),
    ]
    assert result.series[2].first is not None
    assert 600 <= result.series[2].first <= 660
    falling = told({"loss": series()["loss"][:BROKEN]}, grown, "head.weight:grad").result
    assert falling.events == ()  # gradients grow while the loss still falls
    weights = told({"loss": series()["loss"][:BROKEN]}, grown, "head.weight:weight").result
    assert [s.monitor for s in weights.series] == ["not_finite", "loss"]


def test_losses_that_are_not_positive_say_nothing() -> None:
    labels = {"loss": series()["loss"] - 5}
    answer = told(labels)
    assert answer.result.events == ()
    assert answer.arrays["value"][:, 1].isnan().all()
    assert answer.result.lost_above is None
    assert told(labels, lost=20.0).result.lost_above == 20


def test_few_steps_and_none() -> None:
    for n in (0, 1, 20):
        answer = told({name: values[:n] for name, values in series().items()})
        assert answer.result.events == ()
        assert f"{n} steps are no more than the 20" in answer.result.caveats[0]
        assert len(answer.arrays["step"]) == n


def test_what_is_refused() -> None:
    labels = series()
    with pytest.raises(MethodError, match="do not rise; connect a capture of one recording"):
        told(labels | {"step": torch.zeros(STEPS, dtype=torch.float64)})
    with pytest.raises(MethodError, match="hold NaN or infinity"):
        told(labels, torch.full((STEPS, 2), math.nan))
    for integer in ({"loss": labels["loss"].long()}, {}):
        result = told({**integer, "other": labels["other"]}).result
        assert "no loss" in result.caveats[0]

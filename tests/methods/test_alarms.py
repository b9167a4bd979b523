"""anomaly.alarms: what is watched and how it is told, samples of several rows, captures with failed rows, and what is refused."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.anomaly import alarms
from tasks.methods.contract import Block, Inputs, Made, MadeOver
from tasks.numerics.change_alarms import watched
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

DATA = os.environ.get("SUBSPAN_DATA", "")
"""A folder that has the folder adbench_cv_resnet18 of ADBench (CV_by_ResNet18)."""
MADE = Made("anomaly.residual", 1, {"energy": 0.99}, "layer:out:0", ("rows",), {"basis": ("reference",)})


def block_of(n: int, per_sample: int) -> Block:
    index = torch.arange(n)
    return Block({"x": torch.empty(n, 0)}, index // per_sample, index % per_sample, index)


def run(
    score: np.ndarray,
    calibration: np.ndarray,
    per_sample: int = 1,
    *,
    made: Made = MADE,
    shared: int = 0,
    reference: int = 0,
    pooled: bool = False,
    **options: Any,
) -> tuple[alarms.Result, dict[str, torch.Tensor]]:
    """Of rows one by one, or of the first of each sample."""

    def arrays_of(score: np.ndarray) -> dict[str, torch.Tensor]:
        first = np.arange(len(score)) % per_sample == 0
        if not pooled:
            return {"score": torch.from_numpy(score)}
        return {
            "score": torch.from_numpy(np.where(first, score, np.nan)),
            "first": torch.from_numpy(first.astype(np.uint8)),
        }

    block = dataclasses.replace(block_of(len(score), per_sample), aligned={"scores": arrays_of(score)})
    over = MadeOver(block_of(len(calibration), per_sample), {}, shared, reference)
    inputs = Inputs(
        widths={"x": 9},
        n_rows=len(score),
        n_samples=len(score) // per_sample,
        artifacts={"calibration": arrays_of(calibration)},
        made={"scores": MADE, "calibration": dataclasses.replace(made, over=over)},
        sites={"x": "layer:out:0"},
    )
    config = alarms.Config.model_validate(options)
    alarms.check(inputs, config)
    result, arrays = alarms.solve(block, inputs, config)
    return result, {name: array.values for name, array in arrays.items()}


def normal_rows(name: str) -> np.ndarray:
    """float64 [row, feature]"""
    with np.load(Path(DATA) / "adbench_cv_resnet18" / f"{name}.npz") as stored:
        rows: np.ndarray = stored["X"][stored["y"] == 0].astype(np.float64)
    return rows


def drawn(n: int, seed: int = 0, at: int | None = None, move: float = 2.0) -> np.ndarray:
    score = np.random.default_rng(seed).standard_normal(n)
    score[n if at is None else at :] += move
    return score


def test_a_change_is_told_once_with_its_place() -> None:
    score, calibration = drawn(900, at=600), drawn(400, 1)
    result, found = run(score, calibration)
    uniform = np.random.Generator(np.random.Philox(np.random.SeedSequence(0))).random(900)
    expected = watched(*map(torch.from_numpy, (score, calibration, uniform)), 100_000, False)
    assert torch.equal(found["statistic"], expected.statistic)
    assert torch.equal(found["normal"], expected.normal)
    assert (result.n_alarms, result.n_scores, result.n_calibration) == (1, 900, 400)
    assert found["alarm"].tolist() == [result.first_alarm]
    assert found["start"].tolist() == [result.first_start]
    assert found["up"].tolist() == [1]
    assert 600 <= (result.first_alarm or 0) < 615
    (alert,) = result.alerts
    assert (
        f"larger: told at sample {result.first_alarm}, most likely from sample {result.first_start}"
        in alert.message
    )
    assert alert.key == run(score[:700], calibration)[0].alerts[0].key  # whatever follows
    assert alert.key != run(np.concatenate([score[:600], score[606:]]), calibration)[0].alerts[0].key
    assert alert.value == float(found["statistic"][result.first_alarm]) >= alert.threshold == 100_000
    assert abs((result.first_start or 0) - 600) <= 3
    assert result.expected_false == 900 / 100_000
    assert result.caveats[1:] == ()
    assert result.last_statistic == float(found["statistic"][-1])


def test_rows_that_came_later_change_nothing_before() -> None:
    score, calibration = drawn(300, at=200), drawn(100, 1)
    later, whole = run(score, calibration, run_length=100)
    sooner, part = run(score[:250], calibration, run_length=100)
    assert later.alerts[: len(sooner.alerts)] == sooner.alerts != ()
    assert torch.equal(whole["statistic"][:250], part["statistic"])
    _, other = run(score, calibration, run_length=100, seed=1)
    assert not torch.equal(whole["statistic"], other["statistic"])


def test_rows_of_one_sample_are_told_and_samples_that_were_pooled_are_watched() -> None:
    """Rows of one sample are nearly equal: watched one by one they raise false alarms, one score of each sample none."""
    score, calibration = np.repeat(drawn(500), 6) + 0.1 * drawn(3000, 2), np.repeat(drawn(300, 1), 6)
    result, _ = run(score, calibration, 6)
    assert (result.n_scores, result.n_calibration) == (3000, 1800)
    assert result.n_alarms > 0
    assert any("3000 rows of 500: rows of one sample are alike" in note for note in result.caveats)
    assert any("neighbouring scores are correlated" in note for note in result.caveats)
    pooled, found = run(score, calibration, 6, pooled=True)
    assert (pooled.n_scores, pooled.n_calibration, pooled.n_alarms) == (500, 300, 0)
    assert found["row"].tolist() == list(range(0, 3000, 6))
    assert found["sample"].tolist() == list(range(500))
    assert not any("alike" in note for note in pooled.caveats)


def test_it_says_what_the_promise_does_not_hold_for() -> None:
    result, _ = run(drawn(40), drawn(30, 1), shared=3, reference=25)
    few, shared, reference = result.caveats[1:]
    assert few.startswith("30 calibration scores tell little")
    assert "3 of the calibration's samples are among those" in shared
    assert reference.endswith("false alarms come more often than `run_length` says")


def test_no_scores() -> None:
    result, found = run(np.empty(0), drawn(200))
    assert (result.n_scores, result.n_alarms, result.first_alarm, result.neighbours) == (0, 0, None, None)
    assert any("nothing was watched" in note for note in result.caveats)
    assert all(len(values) == 0 for values in found.values())


def test_refusals() -> None:
    with pytest.raises(MethodError, match="found no calibration rows"):
        run(drawn(9), np.empty(0))
    with pytest.raises(MethodError, match="row 4 has the score NaN"):
        run(np.where(np.arange(9) == 4, np.nan, 0), drawn(9))
    with pytest.raises(MethodError, match="row 4 has the score NaN"):
        run(drawn(9), np.where(np.arange(9) == 4, np.nan, 0))
    with pytest.raises(MethodError, match=r"method: anomaly\.residual and anomaly\.spikes"):
        run(drawn(9), drawn(9), made=dataclasses.replace(MADE, method="anomaly.spikes"))
    with pytest.raises(ValidationError, match="run_length"):
        run(drawn(9), drawn(9), run_length=1)


@pytest.mark.skipif(not DATA, reason="SUBSPAN_DATA names no folder with adbench_cv_resnet18")
@pytest.mark.parametrize(("name", "delay"), [("CIFAR10_4", 80), ("SVHN_0", 15)])
def test_images_of_another_class_are_told_once(name: str, delay: int) -> None:
    """Distances from the normal subspace of ResNet-18 features: 2,000 rows of the class that is normal, then all of another."""
    normal, other = normal_rows("CIFAR10_0"), normal_rows(name)
    early = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        fit, known, calm = np.split(normal[rng.permutation(len(normal))[:5000]], [2000, 3000])
        values, vectors = np.linalg.eigh(np.cov(fit.T))
        outside = vectors[:, np.cumsum(values) <= 0.1 * values.sum()]
        score, calibration = (
            np.square((x - fit.mean(0)) @ outside).sum(1)
            for x in (np.concatenate([calm, rng.permutation(other)]), known)
        )
        _, found = run(score, calibration, seed=seed)
        at = found["alarm"].numpy()
        early += (at < 2000).sum()
        assert (at >= 2000).sum() == 1
        assert at[at >= 2000][0] - 1999 <= delay
    assert early <= 10


def test_captures_come_after_each_other(tmp_path: Path) -> None:
    """The second capture lies outside the normal subspace; sample 3 of each failed."""
    root, spread = Location(str(tmp_path)), np.array([5, 3, 1, 0.3, 0.2, 0.1])

    def capture(seed: int, n: int, move: float = 1.0) -> Any:
        rows = np.random.default_rng(seed).standard_normal((n, 6)) * spread
        rows[:, 3:] *= move
        return make_capture(root, {"a": rows}, failed=(3,), name=str(seed))

    normal, known, calm, moved = capture(1, 90), capture(2, 120), capture(3, 80), capture(4, 60, 4)
    basis = stage_of("spectrum.pca", {"x": rows_ref(normal, "a")})

    def scored(specs: list[Any]) -> Any:
        rows = {"x": [rows_ref(spec, "a") for spec in specs]}
        return stage_of("anomaly.residual", rows, {"basis": basis.id}, components=3)

    scores, calibration = scored([calm, moved]), scored([known])
    rows = {"x": [rows_ref(spec, "a") for spec in (calm, moved)]}
    stage = stage_of("anomaly.alarms", rows, {"scores": scores.id, "calibration": calibration.id})
    result = run_stages(root, [basis, scores, calibration, stage], serial)[stage.id].result
    found = artifact_arrays(root, stage.id)
    assert (result["n_scores"], result["n_calibration"], result["n_alarms"]) == (79 + 59, 119, 1)
    assert found["sample"].tolist() == [n for n in range(140) if n not in (3, 83)]
    assert 80 <= result["first_start"] <= 86
    assert found["sample"][found["alarm"][0]] == result["first_alarm"] < 95

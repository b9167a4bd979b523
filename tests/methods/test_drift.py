"""anomaly.drift: captures that drift and that do not, decided together; the series' course; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.drive import serial
from tasks.engine import run_stages
from tasks.methods.anomaly import drift as method
from tasks.methods.contract import Inputs, Made, Member
from tasks.numerics import drift
from tasks.store.artifacts import artifact_arrays
from tasks.store.location import Location
from tests.helpers import make_capture, rows_ref, stage_of

SCALE = np.geomspace(4, 0.2, 12)


def drawn(seed: int, n: int = 120, move: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 12)) * SCALE + move


def arrays_of(rows: np.ndarray, per_sample: int) -> dict[str, torch.Tensor]:
    return {"rows": torch.from_numpy(rows), "sample": torch.arange(len(rows)) // per_sample}


def run(
    reference: np.ndarray,
    *members: np.ndarray,
    per_sample: int = 1,
    unit_length: tuple[bool, bool] = (False, False),
    own: bool = False,
    captures: int = 1,
    seen: int = 1,
    **options: Any,
) -> tuple[method.Result, dict[str, torch.Tensor]]:
    known = tuple({"unit_length": flag, "n_seen": len(reference)} for flag in unit_length)
    series = tuple(
        Member(
            "a",
            ("reference" if own else f"window{n}",),
            arrays_of(rows, per_sample),
            known[1] | {"n_seen": seen * len(rows)},
        )
        for n, rows in enumerate(members)
    )
    inputs = Inputs(
        widths={},
        n_rows=0,
        n_samples=0,
        artifacts={"reference": arrays_of(reference, per_sample)},
        results={"reference": known[0]},
        made={
            "reference": Made(
                "anomaly.normal_rows", 2, {}, "a", ("reference", "more", "still more")[:captures]
            )
        },
        series={"rows": series},
    )
    config = method.Config.model_validate({"components": 3} | options)
    method.check(inputs, config)
    result, arrays = method.solve(inputs, config)
    return result, {name: array.values for name, array in arrays.items()}


def test_the_member_that_drifts_is_told() -> None:
    moved = drawn(3)
    moved[:, :6] += 1.5
    result, found = run(drawn(0), drawn(1), drawn(2), moved)
    assert found["drifted"].tolist() == [0, 0, 1]
    assert (result.n_drifted, result.first_drift) == (1, "window2 a")
    assert result.drifted_by["mean"] == 1
    assert result.drifted_by["mmd"] == 1
    assert result.largest_shift_at == "window2 a"
    (alert,) = result.alerts
    assert (alert.key, alert.threshold) == ("window2 a", 0.05)
    assert "window2 a are not of the law of the reference, by mean" in alert.message
    assert (result.n_tests, result.deals) == (18, 1800)
    assert not result.by_sample
    p = found["p_value"].flatten().tolist()
    by_hand, largest = [0.0] * len(p), 0.0
    for left, place in zip(range(len(p), 0, -1), sorted(range(len(p)), key=p.__getitem__), strict=True):
        largest = max(largest, min(1.0, left * p[place]))
        by_hand[place] = largest
    np.testing.assert_allclose(found["adjusted"].flatten(), by_hand, rtol=1e-15)
    one = drift.compared(
        torch.from_numpy(drawn(0)), torch.from_numpy(moved), (torch.arange(120),) * 2, 3, 1800, 0.05, 0
    )
    assert torch.equal(found["effect"][2], one.effect)
    assert torch.equal(found["p_value"][2], one.p)
    assert len(result.caveats) == 1


def test_nothing_is_told_too_often_of_all_together() -> None:
    """Of 60 series of two in which nothing drifts, at most what a chance of 0.2 gives."""
    told = [
        run(drawn(3 * k, 30), drawn(3 * k + 1, 30), drawn(3 * k + 2, 45), alpha=0.2, deals=99)[0].n_drifted
        for k in range(60)
    ]
    assert sum(n > 0 for n in told) <= 22


def test_samples_of_several_rows_are_dealt_whole() -> None:
    def texts(seed: int) -> np.ndarray:
        return np.repeat(drawn(seed, 12), 10, 0) + 0.05 * drawn(seed + 50)

    result, _ = run(texts(0), texts(1), per_sample=10)
    assert result.by_sample
    assert result.n_reference_samples == 12
    assert result.n_drifted == 0
    assert any("whole samples were dealt, of which there are 12" in note for note in result.caveats)
    one_by_one, _ = run(texts(0), texts(1))
    assert one_by_one.n_drifted == 1


def test_rows_of_several_captures_are_told_apart(tmp_path: Path) -> None:
    """One row of each sample: numbers of samples that come again are no samples of several rows."""
    root = Location(str(tmp_path))
    specs = [make_capture(root, {"a": drawn(seed, 40)}, np.arange(40), name=str(seed)) for seed in range(3)]
    stage = stage_of("anomaly.normal_rows", {"x": [rows_ref(spec, "a") for spec in specs]})
    run_stages(root, [stage], serial)
    assert sorted(artifact_arrays(root, stage.id)["sample"]) == list(range(120))


def test_samples_of_which_other_shares_are_compared() -> None:
    def shares(seen: int, per_sample: int) -> int:
        result, _ = run(drawn(0), drawn(1), per_sample=per_sample, seen=seen)
        return sum("from 0.2 to 1 of the rows are compared" in note for note in result.caveats)

    assert (shares(5, 2), shares(1, 2), shares(5, 1)) == (1, 0, 0)


def test_the_course_of_a_series_is_described_and_decides_nothing() -> None:
    """The leading direction turns by equal steps in a plane, and then back."""
    rng = np.random.default_rng(0)

    def turned(angle: float) -> np.ndarray:
        rows = rng.standard_normal((4000, 12)) * 0.05
        along = rng.standard_normal(4000) * 3
        rows[:, 0] += along * np.cos(angle)
        rows[:, 1] += along * np.sin(angle)
        return rows

    _, found = run(*map(turned, (0, 0.2, 0.4, 0.2)), components=1, most=200, deals=719)
    np.testing.assert_allclose(found["step"], [2 * (1 - np.cos(0.2))] * 3, rtol=0.05)
    assert float(found["bend"][0]) < 1e-3
    assert float(found["bend"][1]) == pytest.approx(2 * (1 - np.cos(0.2)), rel=0.05)


def test_what_it_says() -> None:
    result, _ = run(drawn(0), drawn(1), own=True, unit_length=(True, True))
    lengths, own = result.caveats[1:]
    assert "changes of length are not seen" in lengths
    assert own.startswith("1 members are of captures of the reference itself, first referenc a")


def test_no_more_rows_than_asked_are_compared() -> None:
    result, found = run(drawn(0, 300), drawn(1, 40), most=50)
    assert (result.n_reference, found["used"].tolist()) == (50, [40])


def test_constant_features_and_fewer_rows_than_features() -> None:
    rows = [np.concatenate([drawn(k, 8), np.full((8, 20), 2.0)], 1) for k in range(2)]
    result, found = run(*rows)
    assert bool(found["effect"].isfinite().all())
    assert result.n_drifted == 0
    same, arrays = run(rows[0][:, 12:], rows[1][:, 12:])
    assert (same.n_drifted, same.largest_shift) == (0, 0)
    assert arrays["step"].tolist() == [0]


@pytest.mark.parametrize(
    ("members", "options", "match"),
    [
        ([drawn(1)[:, :9]], {}, "window0 a has 9 features, the reference 12"),
        ([drawn(1, 0), drawn(2, 1)], {}, "window0 a has 0 rows of 0 samples, at least 5 of 2"),
        ([drawn(1, 4)], {"per_sample": 2}, "has 4 rows of 2 samples, at least 5 of 2"),
        ([drawn(1, 8)], {"per_sample": 8}, "has 8 rows of 1 samples"),
        ([drawn(1)], {"per_sample": 2, "captures": 3}, "the reference is of 3 captures with several rows"),
        ([drawn(1)], {"unit_length": (True, False)}, "differ in `unit_length`"),
        ([drawn(1)] * 4, {"deals": 99}, "of 24 tests together none could be told .* ask for 480 deals"),
    ],
)
def test_refusals(members: list[np.ndarray], options: dict[str, Any], match: str) -> None:
    with pytest.raises(MethodError, match=match):
        run(drawn(0), *members, **options)


def test_members_of_too_few_rows_are_left_out() -> None:
    result, found = run(drawn(0), drawn(1, 1), drawn(2, move=3.0), drawn(3, 0))
    assert result.left_out == ("window0 a", "window2 a")
    assert (result.labels, result.first_drift, result.n_tests) == (("window1 a",), "window1 a", 6)
    assert found["drifted"].tolist() == [1]
    assert any("2 members have less than 5 rows" in note for note in result.caveats)


def test_the_newest_members_alone_cost_and_say_what_they_would_without_the_others() -> None:
    rows = [drawn(seed, move=3.0 * (seed == 3)) for seed in range(4)]
    newest, arrays = run(*rows, newest=1)
    alone, expected = run(rows[0], rows[3])
    assert newest.n_tests == alone.n_tests == 6
    assert newest.labels == ("window2 a",)
    assert newest.n_drifted == 1
    for name in ("effect", "p_value", "adjusted"):
        np.testing.assert_array_equal(arrays[name], expected[name])


def test_captures_are_compared_with_the_first(tmp_path: Path) -> None:
    """Samples of four rows; one of each capture failed."""
    root, sample = Location(str(tmp_path)), np.arange(120) // 4

    def made(seed: int, move: float) -> Any:
        spec = make_capture(root, {"a": drawn(seed, 120, move)}, sample, failed=(3,), name=str(seed))
        return stage_of("anomaly.normal_rows", {"x": rows_ref(spec, "a")}, most=90, unit_length=False)

    stages = [made(1, 0), made(2, 0), made(3, 2)]
    stage = stage_of(
        "anomaly.drift",
        {},
        {"reference": stages[0].id},
        {"rows": stages[1:]},
        components=3,
    )
    result = run_stages(root, [*stages, stage], serial)[stage.id].result
    kept = artifact_arrays(root, stages[0].id)
    assert len(kept["rows"]) == len(kept["sample"]) == 90
    rows = drawn(1, 120).astype(np.float32)
    for row, number in zip(kept["rows"][:5], kept["sample"][:5], strict=True):
        assert (rows[sample == number] == row.astype(np.float32)).all(1).any()
    assert 3 not in kept["sample"]
    assert result["by_sample"]
    assert result["n_drifted"] == 1
    assert result["first_drift"] == result["labels"][1]

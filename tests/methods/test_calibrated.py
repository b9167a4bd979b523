"""anomaly.calibrated: rates that hold, p-values beside a loop, classes by themselves, and calibrations of something else."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from schemas.errors import MethodError
from tasks.methods.anomaly import calibrated
from tasks.methods.contract import Block, Inputs, Made, MadeOver
from tests.methods.cases import Answer, Case, cut, run_rowwise

OPTIONS = {"energy": 0.99, "components": None}
MADE = Made("anomaly.residual", 1, OPTIONS, "layer:out:0", ("rows",), {"basis": ("reference",)})


def block_of(n: int, code: np.ndarray | None = None, per_sample: int = 1) -> Block:
    index = torch.arange(n)
    labels = {} if code is None else {"kind": torch.from_numpy(code)}
    return Block({}, index // per_sample, index % per_sample, index, labels)


def case_of(
    score: np.ndarray,
    calibration: np.ndarray,
    code: np.ndarray | None = None,
    calibration_code: np.ndarray | None = None,
    *,
    names: tuple[str, ...] = ("a", "b"),
    calibration_names: tuple[str, ...] = ("a", "b"),
    made: Made = MADE,
    shared: int = 0,
    reference: int = 0,
    per_sample: int = 1,
    **options: Any,
) -> Case:
    there = ~np.isnan(calibration)
    whole = block_of(len(calibration), calibration_code, per_sample)
    good = dataclasses.replace(
        whole,
        **{name: getattr(whole, name)[there] for name in ("sample", "position", "index")},
        labels={name: values[there] for name, values in whole.labels.items()},
    )
    over = MadeOver(good, {} if calibration_code is None else {"kind": calibration_names}, shared, reference)
    inputs = Inputs(
        widths={"x": 9},
        n_rows=len(score),
        n_samples=len(score),
        categories={} if code is None else {"kind": names},
        artifacts={"scores": {}, "calibration": {"score": torch.from_numpy(calibration)}},
        made={"scores": MADE, "calibration": dataclasses.replace(made, over=over)},
        sites={"x": "layer:out:0"},
    )
    block = dataclasses.replace(
        block_of(len(score), code),
        rows={"x": torch.empty(len(score), 0)},
        aligned={"scores": {"score": torch.from_numpy(score)}},
    )
    return Case(calibrated, calibrated.Config.model_validate(options), inputs, block)


def run(here: Case, edges: tuple[int, ...] = (7, 7, 20)) -> Answer:
    here.module.check(here.inputs, here.config)
    return run_rowwise(here, cut(here.block, edges))


def test_p_values_flags_and_discoveries_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    calibration, score = (
        rng.integers(0, 40, 59).astype(np.float32),
        rng.integers(0, 60, 80).astype(np.float32),
    )
    with_failed = np.insert(calibration, 5, np.nan)
    found = run(case_of(score, with_failed, alpha=0.1, q=0.3))
    p = np.array([(1 + (calibration >= s).sum()) / 60 for s in score])
    assert found.arrays["p_value"].dtype == torch.float64
    np.testing.assert_array_equal(found.arrays["p_value"], p)
    np.testing.assert_array_equal(found.arrays["flagged"], p <= 0.1)
    np.testing.assert_array_equal(score > found.result.threshold, p <= 0.1)
    adjusted = stats.false_discovery_control(p)
    assert found.result.discovered == (adjusted <= 0.3).sum() > 0
    assert found.result.threshold_p == p[adjusted <= 0.3].max()
    assert found.result.least_p == p.min() == 1 / 60
    assert (found.result.n_rows, found.result.n_calibration) == (80, 59)
    assert found.result.flagged == (p <= 0.1).mean()
    assert found.arrays["code"].tolist() == [-1]
    assert found.arrays["rows"].tolist() == [80]
    assert found.result.caveats == ()


@pytest.mark.parametrize(
    ("n", "m", "alpha", "low", "high"),
    [(1000, 1500, 0.05, 0.0247, 0.0833), (2000, 10000, 0.01, 0.0037, 0.0198)],
)
def test_normal_rows_are_flagged_at_the_wanted_rate(
    n: int, m: int, alpha: float, low: float, high: float
) -> None:
    rates = []
    for seed in range(40):
        scores = np.random.default_rng(1000 + seed).standard_normal(n + m) ** 2
        rates.append(run(case_of(scores[n:], scores[:n], alpha=alpha)).result.flagged)
    assert low <= min(rates)
    assert max(rates) <= high
    if alpha == 0.05:
        assert 0.046 <= float(np.mean(rates)) <= 0.054


def test_classes_have_calibrations_of_their_own_whatever_their_codes() -> None:
    rng = np.random.default_rng(1)
    code, calibration_code = np.arange(90) % 3 - 1, np.arange(200) % 2  # -1: no class
    score = rng.standard_normal(90) + 5 * (code == 1)
    calibration = rng.standard_normal(200) + 5 * (calibration_code == 0)
    here = case_of(score, calibration, code, calibration_code, calibration_names=("b", "a"), by_class="kind")
    found = run(here)
    for k, name in enumerate("ab"):
        cal = calibration[calibration_code == ("b", "a").index(name)]
        p = np.array([(1 + (cal >= s).sum()) / 101 for s in score[code == k]])
        np.testing.assert_array_equal(found.arrays["p_value"][code == k], p)
        np.testing.assert_array_equal(score[code == k] > float(found.arrays["threshold"][k]), p <= 0.05)
        assert int(found.arrays["flagged_rows"][k]) == (p <= 0.05).sum()
    assert found.arrays["p_value"][code < 0].isnan().all()
    assert not found.arrays["flagged"][code < 0].any()
    assert (found.result.n_rows, found.result.n_unlabelled) == (60, 30)
    assert found.result.threshold is None
    assert found.arrays["calibration_rows"].tolist() == [100, 100]
    together = run(case_of(score, calibration)).result
    assert together.rate_low < 0.05 < together.rate_high


def test_discoveries_of_classes_are_made_together() -> None:
    rng = np.random.default_rng(2)
    code, calibration_code = np.arange(300) % 2, (np.arange(500) % 5 == 0).astype(np.int64)
    score, calibration = rng.standard_normal(300) + 6 * (np.arange(300) < 60), rng.standard_normal(500)
    found = run(case_of(score, calibration, code, calibration_code, by_class="kind"))
    adjusted = stats.false_discovery_control(found.arrays["p_value"].numpy())
    assert found.result.discovered == (adjusted <= 0.1).sum() > 30
    assert found.result.smallest_calibration == 100


def test_it_says_what_too_few_calibration_rows_cannot_do() -> None:
    score = np.full(50, 3.0)
    few = run(case_of(score, np.arange(9.0) / 9, alpha=0.05, q=0.05)).result
    assert (few.threshold, few.flagged, few.discovered, few.rate_low, few.rate_high) == (None, 0, 0, 0, 0)
    assert "9 calibration rows flag nothing at alpha 0.05: 19 or more would" in few.caveats[0]
    assert "nothing can be discovered at q 0.05: 19 or more" in few.caveats[1]
    assert "999 for a single one of 50" in few.caveats[1]
    assert few.fewest_discoveries == 100
    enough = run(case_of(score, np.arange(19.0) / 19, alpha=0.05, q=0.05)).result
    assert (enough.flagged, enough.discovered, enough.caveats) == (1, 50, ())


def test_it_says_where_rows_are_not_exchangeable() -> None:
    rng = np.random.default_rng(3)
    here = case_of(rng.standard_normal(40), rng.standard_normal(100), per_sample=4, shared=3, reference=25)
    several, shared, reference = run(here).result.caveats[-3:]
    assert "100 calibration rows are of 25 samples" in several
    assert "3 of the calibration's samples are among those that are judged" in shared
    assert "reference was made from 25 of the calibration's samples" in reference


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"method": "anomaly.mahalanobis"}, "method: anomaly.residual and anomaly.mahalanobis"),
        ({"version": 2}, "version: 1 and 2"),
        ({"config": OPTIONS | {"energy": 0.9}}, "option 'energy': 0.99 and 0.9"),
        ({"reads": {"basis": ("another",)}}, "port 'basis': reference and another"),
        ({"site": "layer.1:out:0"}, "site: layer:out:0 and layer.1:out:0"),
    ],
)
def test_a_calibration_of_something_else_is_refused(other: dict[str, Any], match: str) -> None:
    with pytest.raises(MethodError, match=match):
        run(case_of(np.zeros(3), np.zeros(3), made=dataclasses.replace(MADE, **other)))


def test_refusals() -> None:
    kinds, zeros = np.zeros(9, dtype=np.int64), np.zeros(9)
    with pytest.raises(MethodError, match=r"no calibration row has the class 'b' .* rows of: 'a'"):
        run(case_of(zeros, zeros, kinds, kinds, by_class="kind"))
    with pytest.raises(MethodError, match="calibration rows have no label 'kind'"):
        run(case_of(zeros, zeros, kinds, by_class="kind"))
    with pytest.raises(MethodError, match="label 'sort' names no classes"):
        run(case_of(zeros, zeros, kinds, kinds, by_class="sort"))
    with pytest.raises(MethodError, match="no calibration rows"):
        run(case_of(zeros, np.full(9, np.nan)))
    with pytest.raises(MethodError, match="row 4 has the score NaN"):
        run(case_of(np.where(np.arange(9) == 4, np.nan, 0), zeros))

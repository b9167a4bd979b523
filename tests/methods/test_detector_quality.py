"""anomaly.quality beside scikit-learn, exact and in bins; what it says and refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from schemas.errors import MethodError
from tasks.methods.anomaly import quality
from tasks.methods.contract import Block, Inputs
from tests.methods.cases import Answer, Case, cut, run_reduce

NAMES = ("cat", "dog", "noise", "fog")


def run(
    score: np.ndarray,
    code: np.ndarray,
    edges: tuple[int, ...] = (),
    n_samples: int | None = None,
    **options: Any,
) -> Answer:
    n = len(score)
    index = torch.arange(n)
    labels, aligned = {"kind": torch.from_numpy(code)}, {"scores": {"score": torch.from_numpy(score)}}
    block = Block({"x": torch.empty(n, 0)}, index, index, index, labels, aligned=aligned)
    samples = n if n_samples is None else n_samples
    inputs = Inputs({"x": 9}, n_rows=n, n_samples=samples, categories={"kind": NAMES})
    config = quality.Config.model_validate({"anomalous": ("noise", "fog")} | options)
    quality.check(inputs, config)
    return run_reduce(Case(quality, config, inputs, block), cut(block, edges))


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    code = rng.integers(-1, 4, n)
    return rng.standard_normal(n) + (code >= 2), code


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scikit_learn_agrees(decimals: int | None, dtype: Any) -> None:
    score, code = drawn(3000)
    score = (score if decimals is None else np.round(score, decimals)).astype(dtype)
    found = run(score, code, (100, 100, 2000)).result
    s, a = score[code >= 0], code[code >= 0] >= 2
    assert found.auroc.value == pytest.approx(metrics.roc_auc_score(a, s), abs=1e-12)
    assert found.aupr_anomalous_positive == pytest.approx(metrics.average_precision_score(a, s), abs=1e-12)
    assert found.aupr_normal_positive == pytest.approx(metrics.average_precision_score(~a, -s), abs=1e-12)
    for name, positive, by in (("anomalous", a, s), ("normal", ~a, -s)):
        false, true, _ = metrics.roc_curve(positive, by, drop_intermediate=False)
        got = getattr(found, f"fpr95_{name}_positive")
        assert got == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-12)
    assert found.best_f1 == pytest.approx(metrics.f1_score(a, s >= found.best_f1_threshold), abs=1e-12)
    assert (found.n_rows, found.n_anomalous, found.n_unlabelled) == (len(s), a.sum(), (code < 0).sum())
    assert found.exact
    assert found.auroc_bound == 0
    assert found.distinct == len(np.unique(s))
    assert found.caveats == ()


def test_bins_are_off_by_no_more_than_they_say() -> None:
    score, code = drawn(20_000, 1)
    exact, binned = run(score, code).result, run(score, code, (5000, 9000), bins=1024)
    result = binned.result
    assert not result.exact
    assert 512 < result.distinct <= 1024
    assert 0 < abs(result.auroc.value - exact.auroc.value) <= result.auroc_bound < 3e-3
    assert "rounded down to bins" in result.caveats[-1]
    flagged, a = score[code >= 0] >= result.best_f1_threshold, code[code >= 0] >= 2
    assert result.best_f1 == pytest.approx(metrics.f1_score(a, flagged), abs=1e-12)
    assert len(binned.arrays["roc"]) == quality.POINTS


def test_the_interval_holds_the_true_area() -> None:
    """Of two normal laws one apart, 0.760: in 95 % of 300 draws, within three standard errors."""
    held = 0
    for seed in range(300):
        found = run(*drawn(150, seed)).result.auroc
        held += found.low <= 0.7602499 <= found.high
    assert 270 <= held <= 297


def test_the_curve_is_that_of_scikit_learn() -> None:
    score, code = np.array([0.0, 1, 1, 2, 3]), np.array([0, 2, 0, 3, 1])
    curve = run(score, code).arrays["roc"].numpy()
    false, true, _ = metrics.roc_curve(code >= 2, score, drop_intermediate=False)
    np.testing.assert_allclose(curve, np.stack([false, true], 1), atol=1e-15)


def test_it_says_what_limits_the_figures() -> None:
    perfect = run(np.arange(6.0), np.array([0, 0, 1, 2, 3, 3])).result
    assert (perfect.auroc.value, perfect.auroc.low, perfect.best_f1) == (1, None, 1)
    assert perfect.fpr95_anomalous_positive == perfect.fpr95_normal_positive == 0
    assert "a class has 3 rows" in perfect.caveats[0]
    turned = run(-np.arange(6.0), np.array([0, 0, 1, 2, 3, 3]), n_samples=2).result
    assert "6 rows are of 2 samples" in turned.caveats[0]
    assert "anomalous rows score lower" in turned.caveats[-1]


def test_rows_are_of_fewer_samples_though_few_have_a_class() -> None:
    """Nine rows of three samples, of which one has a class."""
    few = run(np.arange(9.0), np.array([0, 1, 2] + 6 * [-1]), n_samples=3).result
    assert any("9 rows are of 3 samples" in note for note in few.caveats)


def test_infinite_scores_are_scores() -> None:
    found = run(np.array([-np.inf, 0, np.inf, np.inf]), np.array([0, 0, 2, 2])).result
    assert (found.auroc.value, found.best_f1, found.best_f1_threshold) == (1, 1, None)


def test_refusals() -> None:
    score, code = drawn(50)
    with pytest.raises(MethodError, match="names 0 of the classes of label 'kind', which are 'cat', 'dog'"):
        run(score, code, anomalous=())
    with pytest.raises(MethodError, match="names 4 of the classes"):
        run(score, code, anomalous=NAMES)
    with pytest.raises(MethodError, match="has no class 'nois'; nearest: noise"):
        run(score, code, anomalous=("nois",))
    with pytest.raises(MethodError, match="label 'sort' names no classes"):
        run(score, code, label="sort")
    with pytest.raises(MethodError, match="found 0 anomalous and 50 normal rows"):
        run(score, np.zeros(50, dtype=np.int64))
    with pytest.raises(MethodError, match="row 3 has the score NaN"):
        run(np.where(np.arange(50) == 3, np.nan, score), code)

"""Measures of detection beside scikit-learn and plain loops, with heavy ties; standard errors beside repeated draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tasks.numerics import detection

ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=4, max_size=120).filter(
    lambda rows: len({anomalous for _, anomalous in rows}) == 2
)


def counted(score: np.ndarray, anomalous: np.ndarray) -> detection.Counts:
    return detection.counted(torch.from_numpy(score), torch.from_numpy(anomalous))


def agree(score: np.ndarray, anomalous: np.ndarray) -> None:
    counts = counted(score, anomalous)
    assert detection.auroc(counts) == pytest.approx(metrics.roc_auc_score(anomalous, score), abs=1e-12)
    for turned, s, a in ((counts, score, anomalous), (detection.turned(counts), -score, ~anomalous)):
        wanted = metrics.average_precision_score(a, s)
        assert detection.average_precision(turned) == pytest.approx(wanted, abs=1e-12)
        for share in (0.5, 0.95, 1.0):
            false, found, _ = metrics.roc_curve(a, s, drop_intermediate=False)
            assert detection.false_alarms(turned, share) == pytest.approx(
                false[np.argmax(found >= share)], abs=1e-12
            )
    best = detection.best_f1(counts)
    f1 = {t: metrics.f1_score(anomalous, score >= t) for t in np.unique(score)}
    assert best.f1 == pytest.approx(max(f1.values()), abs=1e-12)
    assert f1[best.threshold] == pytest.approx(best.f1, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS)
def test_scikit_learn_agrees_with_heavy_ties(rows: list[tuple[int, bool]]) -> None:
    agree(np.array([s for s, _ in rows], float) / 3, np.array([a for _, a in rows]))


@pytest.mark.parametrize("ties", [False, True])
def test_scikit_learn_agrees_on_many_rows(ties: bool) -> None:
    rng = np.random.default_rng(0)
    anomalous = rng.random(3000) < 0.03
    score = rng.standard_normal(3000) + 1.5 * anomalous
    agree(np.round(score, 1) if ties else score, anomalous)


def test_chances_are_those_of_pairs() -> None:
    score, anomalous = np.array([0.0, 1, 1, 2, 3]), np.array([False, True, False, True, False])
    pairs = [(a > b) + (a == b) / 2 for a in score[anomalous] for b in score[~anomalous]]
    assert detection.auroc(counted(score, anomalous)) == pytest.approx(np.mean(pairs), abs=1e-15)


@settings(deadline=None, max_examples=40)
@given(rows=ROWS, width=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_the_bound_of_rounding_holds(rows: list[tuple[int, bool]], width: float) -> None:
    score, anomalous = np.array([s for s, _ in rows], float) / 3, np.array([a for _, a in rows])
    exact, binned = counted(score, anomalous), counted(np.floor(score / width), anomalous)
    off = abs(detection.auroc(exact) - detection.auroc(binned))
    assert off <= detection.rounding(binned) + 1e-15


def test_the_bound_is_reached() -> None:
    apart = counted(np.array([0.0, 1]), np.array([False, True]))
    together = counted(np.array([0.0, 0]), np.array([False, True]))
    assert detection.auroc(apart) - detection.auroc(together) == detection.rounding(together) == 0.5


def test_the_standard_error_is_delongs() -> None:
    rng = np.random.default_rng(0)
    score, anomalous = np.round(rng.standard_normal(60), 1), np.arange(60) < 25
    score[anomalous] += 0.8
    won = np.array([[(a > b) + (a == b) / 2 for b in score[~anomalous]] for a in score[anomalous]])
    wanted = won.mean(1).var(ddof=1) / 25 + won.mean(0).var(ddof=1) / 35
    assert detection.auroc_error(counted(score, anomalous)) == pytest.approx(math.sqrt(wanted), rel=1e-12)


def test_the_standard_error_is_the_spread_over_draws() -> None:
    areas, errors = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        counts = counted(rng.standard_normal(200) + (np.arange(200) < 60), np.arange(200) < 60)
        areas.append(detection.auroc(counts))
        errors.append(detection.auroc_error(counts))
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.12)


def test_rows_of_one_class_have_no_figures() -> None:
    for anomalous in (True, False):
        counts = counted(np.arange(3.0), np.full(3, anomalous))
        assert math.isnan(detection.auroc(counts))
        assert math.isnan(detection.auroc_error(counts))
        assert math.isnan(detection.false_alarms(counts, 0.95))
    assert math.isnan(detection.best_f1(counts).f1)
    assert math.isnan(detection.average_precision(counts))

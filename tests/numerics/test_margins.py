"""Margins against plain numbers, scipy's t interval, and how often the intervals hold what is true."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tasks.numerics.margins import Margin, margins


def of(scores: np.ndarray, draws: int, threshold: float, shares: bool) -> Margin:
    """Scores [sample, draw ..., other]: the mean draw less the threshold times the other."""
    table = torch.from_numpy(np.concatenate([np.ones((len(scores), 1)), scores], 1))
    ours = torch.zeros(draws, 1, draws + 1, dtype=torch.float64)
    for draw in range(draws):
        ours[draw, 0, draw] = 1
    theirs: Tensor = torch.zeros(draws + 1, dtype=torch.float64)
    theirs[-1] = threshold
    return margins(table.T @ table, ours, theirs, shares)


def test_values_and_errors_are_those_of_differences() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 2)) + rng.normal(size=(40, 1))
    found = of(scores, 1, 0.9, shares=False)
    x = scores[:, 0] - 0.9 * scores[:, 1]
    error = x.std(ddof=1) / 40**0.5
    assert float(found.value) == pytest.approx(x.mean())
    assert float(found.error) == pytest.approx(error)
    low, high = stats.t.interval(0.95, 39, x.mean(), error)
    assert (float(found.low), float(found.high)) == pytest.approx((low, high))


def test_a_sample_at_each_corner() -> None:
    scores = (np.random.default_rng(0).random((50, 2)) < 0.8).astype(float)
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
    more = np.concatenate([scores, corners])
    x = more[:, 0] - 0.9 * more[:, 1]
    low, high = stats.t.interval(0.95, 53, x.mean(), x.std(ddof=1) / 54**0.5)
    found = of(scores, 1, 0.9, shares=True)
    assert (float(found.low), float(found.high)) == pytest.approx((low, high))
    assert float(found.value) == pytest.approx((scores[:, 0] - 0.9 * scores[:, 1]).mean())


def missed(n: int, draws: int, spread: float, full: float, shares: bool = True) -> float:
    """How often the interval does not hold a true margin of 0."""
    rng, count, runs = np.random.default_rng(1), 0, 1000
    for _ in range(runs):
        level = 0.9 * full + spread * rng.standard_normal(draws)
        if shares:
            scores = np.concatenate([rng.random((n, draws)) < level, rng.random((n, 1)) < full], 1).astype(
                float
            )
        else:
            scores = np.concatenate([level + rng.standard_normal((n, draws)), np.full((n, 1), full)], 1)
        found = of(scores, draws, 0.9, shares)
        count += not float(found.low) <= 0 <= float(found.high)
    return count / runs


@pytest.mark.parametrize("full", [1.0, 0.97, 0.7])
@pytest.mark.parametrize("n", [30, 60, 300])
def test_intervals_of_shares_hold_the_truth(n: int, full: float) -> None:
    assert missed(n, 1, 0.0, full) < 0.075


@pytest.mark.parametrize("draws", [2, 3, 8])
@pytest.mark.parametrize("shares", [False, True])
def test_draws_are_part_of_the_interval(draws: int, shares: bool) -> None:
    assert missed(400, draws, 0.05, 0.9, shares) < 0.075


def test_agreement_on_few_samples_is_not_certain() -> None:
    alike = np.ones((5, 2))
    found = of(alike, 1, 0.9, shares=True)
    assert float(found.error) == 0
    assert float(found.low) < 0
    many = of(np.ones((500, 2)), 1, 0.9, shares=True)
    assert float(many.low) > 0.05

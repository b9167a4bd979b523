"""Conformal p-values beside plain loops, thresholds beside their law, discoveries beside scipy, and rates of false alarms that hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.numerics import conformal
from tasks.numerics.conformal import Procedure

SCORES = st.lists(st.integers(-3, 3).map(float) | st.sampled_from([-math.inf, math.inf]), max_size=30)


def ascending(scores: list[float] | np.ndarray) -> torch.Tensor:
    return torch.tensor(np.sort(scores), dtype=torch.float64)


@given(calibration=SCORES, score=SCORES)
def test_p_values_are_counts_with_ties_against_the_row(calibration: list[float], score: list[float]) -> None:
    n = len(calibration)
    found = conformal.p_values(torch.tensor(score, dtype=torch.float64), ascending(calibration))
    assert found.tolist() == [(1 + sum(c >= s for c in calibration)) / (n + 1) for s in score]
    counts = conformal.counted(found, n)
    assert torch.equal(torch.repeat_interleave(conformal.values(n), counts), found.sort().values)
    half = len(score) // 2
    assert torch.equal(conformal.counted(found[:half], n) + conformal.counted(found[half:], n), counts)


def test_counts_come_back_from_p_values_of_large_calibrations() -> None:
    for n in (0, 1, 2, 999, 99_991, 3_000_017):
        assert bool((conformal.counted(conformal.values(n), n) == 1).all())
        assert float(conformal.values(n)[0]) == 1 / (n + 1)
        assert float(conformal.values(n)[-1]) == 1


@given(calibration=SCORES, score=SCORES, alpha=st.floats(0.001, 0.999) | st.sampled_from([0.07, 0.29, 0.5]))
def test_what_exceeds_the_threshold_has_a_small_p_value(
    calibration: list[float], score: list[float], alpha: float
) -> None:
    cal, s = ascending(calibration), torch.tensor(score, dtype=torch.float64)
    found = conformal.threshold(cal, alpha, 0.9)
    assert torch.equal(s > found.value, conformal.p_values(s, cal) <= alpha)
    assert found.rank == int((conformal.values(len(cal)) <= alpha).sum())


def test_the_threshold_is_the_stated_order_statistic() -> None:
    cal = ascending(np.arange(99.0))
    for alpha, place in ((0.05, 95), (0.29, 71), (0.01, 99)):
        assert conformal.threshold(cal, alpha, 0.9).value == place - 1
    found = conformal.threshold(cal, 0.05, 0.9)
    assert (found.low, found.high) == pytest.approx(tuple(stats.beta.ppf([0.05, 0.95], 5, 95)))


@given(alpha=st.floats(0.001, 0.999))
def test_the_fewest_calibration_rows_are_enough_and_one_less_is_not(alpha: float) -> None:
    n = conformal.least_rows(alpha)
    assert conformal.rank(alpha, n) == 1 or alpha > 0.5
    assert n == 0 or conformal.rank(alpha, n - 1) == 0
    assert n == pytest.approx(1 / alpha - 1, abs=1)
    none = conformal.threshold(torch.zeros(max(0, n - 1), dtype=torch.float64), alpha, 0.9)
    assert none.value == math.inf or n == 0


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=2, max_size=25),
    q=st.floats(0.01, 0.99),
    procedure=st.sampled_from(["bh", "by"]),
    reach=st.integers(0, 200),
)
def test_discoveries_are_those_of_scipy(
    counts: list[int], q: float, procedure: Procedure, reach: int
) -> None:
    p, rows = conformal.values(len(counts) - 1 + reach)[: len(counts)], torch.tensor(counts)
    each = torch.repeat_interleave(p, rows).numpy()
    adjusted = stats.false_discovery_control(each, method=procedure) if len(each) else each
    assume(not (np.abs(adjusted - q) < 1e-9).any())
    found = conformal.discoveries(p, rows, q, procedure)
    assert found.n == int((adjusted <= q).sum())
    assert found.threshold == (each[adjusted <= q].max() if found.n else 0)
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    again = torch.cat([p[order], p]), torch.cat([rows[order], torch.zeros_like(rows)])
    assert conformal.discoveries(*again, q, procedure) == found


@given(
    rows=st.integers(1, 500),
    n=st.integers(1, 500),
    q=st.floats(0.02, 0.9),
    procedure=st.sampled_from(["bh", "by"]),
)
def test_how_many_must_be_found_together(rows: int, n: int, q: float, procedure: Procedure) -> None:
    fewest = conformal.fewest_discoveries(rows, n, q, procedure)

    def found(k: int, size: int) -> int:
        counts = torch.zeros(size + 1, dtype=torch.int64)
        counts[0], counts[-1] = k, rows - k
        return conformal.discoveries(conformal.values(size), counts, q, procedure).n

    if fewest < rows:
        assert found(fewest, n) == fewest
    if 1 < fewest <= rows:
        assert found(fewest - 1, n) == 0
    size = conformal.rows_to_discover(1, rows, q, procedure)
    if 0 < size < 10**5 and rows > 1:
        assert found(1, size) == 1
        assert size == 1 or found(1, size - 1) == 0


@pytest.mark.parametrize(
    ("n", "m", "alpha", "low", "high"),
    [(1000, 1500, 0.05, 0.0247, 0.0833), (2000, 10000, 0.01, 0.0037, 0.0198)],
)
def test_false_alarms_come_at_the_wanted_rate(n: int, m: int, alpha: float, low: float, high: float) -> None:
    """In the 99.9 % range of the beta-binomial law for every one of 40 seeds, and in the mean."""
    rates, inside = [], 0
    for seed in range(40):
        scores = np.random.default_rng(seed).standard_normal(n + m) ** 2
        found = conformal.threshold(ascending(scores[:n]), alpha, 0.9)
        rates.append(float((scores[n:] > found.value).mean()))
        inside += found.low <= stats.chi2.sf(found.value, 1) <= found.high
    assert low <= min(rates)
    assert max(rates) <= high
    if alpha == 0.05:
        assert 0.046 <= float(np.mean(rates)) <= 0.054
    assert 30 <= inside <= 40, "of 36 expected"


def any_found(n: int, m: int, q: float, procedure: Procedure) -> float:
    """Share of 200 draws of normal rows alone in which something is discovered."""
    found = 0
    for seed in range(200):
        scores = torch.from_numpy(np.random.default_rng(seed).standard_normal(n + m))
        p = conformal.p_values(scores[n:], scores[:n].sort().values)
        found += conformal.discoveries(conformal.values(n), conformal.counted(p, n), q, procedure).n > 0
    return found / 200


@pytest.mark.parametrize(("n", "m"), [(1000, 600), (5999, 600), (999, 100)])
def test_nothing_is_discovered_among_normal_rows_more_often_than_allowed(n: int, m: int) -> None:
    """Exactly as often where q (n + 1) / m is a whole number, as in the last two; less by the other procedure."""
    spread = 3 * math.sqrt(0.1 * 0.9 / 200)
    found = any_found(n, m, 0.1, "bh")
    assert found <= 0.1 + spread
    assert found >= 0.1 - spread or n == 1000
    assert any_found(n, m, 0.1, "by") <= found


def test_planted_rows_are_discovered_at_the_wanted_rate() -> None:
    shares, power = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        cal = ascending(rng.standard_normal(2000))
        score = torch.from_numpy(np.concatenate([rng.standard_normal(900), 4 + rng.standard_normal(100)]))
        p = conformal.p_values(score, cal)
        found = conformal.discoveries(conformal.values(2000), conformal.counted(p, 2000), 0.1, "bh")
        chosen = p <= found.threshold
        assert int(chosen.sum()) == found.n
        shares.append(float(chosen[:900].sum()) / max(1, found.n))
        power.append(float(chosen[900:].float().mean()))
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / 10
    assert np.mean(power) > 0.8


def test_the_chance_of_flags_is_that_of_drawn_calibrations() -> None:
    n, rows, alpha, rng = 99, 60, 0.05, np.random.default_rng(0)
    rank = conformal.rank(alpha, n)
    calibration = np.sort(rng.random((20_000, n)), 1)[:, n - rank]
    flagged = (rng.random((20_000, rows)) > calibration[:, None]).sum(1)
    for k in (1, 3, 6, 9):
        chance = conformal.chance_of(k, rows, rank, n)
        assert abs((flagged >= k).mean() - chance) < 4 * (chance * (1 - chance) / 20_000) ** 0.5 + 1e-9
    assert conformal.chance_of(0, rows, rank, n) == conformal.chance_of(0, rows, 0, 3) == 1
    whole = math.prod((5 + k) / (100 + k) for k in range(60))  # all rows, by hand: B(5 + 60, 95) / B(5, 95)
    assert conformal.chance_of(60, 60, 5, 99) == pytest.approx(whole, rel=1e-9)
    many = stats.betabinom(900_000, 50, 951).logpmf(np.arange(62_000, 900_001))
    assert conformal.chance_of(62_000, 900_000, 50, 1000) == pytest.approx(np.exp(many).sum(), rel=1e-9)

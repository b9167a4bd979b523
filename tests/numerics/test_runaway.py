"""Sums of excess against a plain loop in NumPy, what alarms, and how seldom noise does."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics.runaway import Rule, Watch, excesses, taken

RULE = Rule()


def alarms(values: np.ndarray, rule: Rule = RULE) -> list[int]:
    """Where alarms begin."""
    watch, found = Watch(), []
    for k, value in enumerate(values):
        watch, begins = taken(watch, float(value), rule)
        found += [k] if begins else []
    return found


def plain(values: list[float], rule: Rule) -> list[float]:
    """The same sums, written once more."""
    found, total = [], 0.0
    for k, value in enumerate(values):
        past = np.array(values[max(0, k - rule.window) : k])
        if len(past) >= rule.warmup:
            spread = max(1.4826 * np.median(np.abs(past - np.median(past))), rule.floor)
            total = max(0.0, total + min((value - np.median(past)) / spread, rule.most) - rule.allowance)
        found.append(total)
    return found


@given(
    values=st.lists(st.floats(-5, 5), max_size=60),
    window=st.integers(5, 30),
    warmup=st.integers(2, 5),
)
def test_sums_are_those_of_a_loop(values: list[float], window: int, warmup: int) -> None:
    rule = Rule(window=window, warmup=warmup)
    np.testing.assert_allclose(excesses(values, rule), plain(values, rule), rtol=1e-9, atol=1e-9)


def test_a_rise_is_one_alarm_and_an_outlier_none() -> None:
    noise = np.random.default_rng(0).standard_normal(200)
    outlier = noise.copy()
    outlier[100] = 1e6
    assert alarms(outlier) == []
    risen = noise + 8 * (np.arange(200) >= 100)
    assert alarms(risen) == [103]  # 2.5 a step from 100 on exceed eight at the fourth
    twice = noise + 8 * (np.arange(200) % 100 >= 90)
    assert len(alarms(twice)) == 2


def test_noise_alarms_seldom() -> None:
    """Independent normal values: how often in 20 x 2,000 steps. Tails of three degrees of freedom alarm more often."""
    rng = np.random.default_rng(1)
    normal = sum(len(alarms(rng.standard_normal(2000))) for _ in range(20))
    heavy = sum(len(alarms(rng.standard_t(3, 2000))) for _ in range(20))
    assert normal <= 2, normal
    assert heavy <= 20, heavy


def test_what_is_not_finite_changes_nothing() -> None:
    watch, _ = taken(Watch(), 1.0, RULE)
    for value in (math.nan, math.inf, -math.inf):
        assert taken(watch, value, RULE) == (watch, False)
    assert excesses([], RULE) == []
    assert excesses([2.0] * 100, RULE) == [0.0] * 100

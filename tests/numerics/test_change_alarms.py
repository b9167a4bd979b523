"""Alarms at changes beside plain loops, and by simulation: the time to false ones, delays, and one alarm for one change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.numerics import change_alarms
from tasks.numerics.change_alarms import SHIFTS, Watched, neighbours, watched

SCORES = st.lists(st.integers(-3, 3).map(float), max_size=25)


def stream(
    seed: int, n: int, calibration: int, run_length: float, both: bool = False, moves: tuple[float, ...] = ()
) -> Watched:
    """Normal scores whose mean moves by so many standard deviations at each of equally distant places."""
    rng = np.random.default_rng(seed)
    score, part = rng.standard_normal(n), n // (len(moves) + 1)
    for number, move in enumerate(moves, start=1):
        score[number * part :] += move
    given = (score, rng.standard_normal(calibration), rng.random(n))
    return watched(*map(torch.from_numpy, given), run_length, both)


def by_loop(
    score: list[float], calibration: list[float], uniform: list[float], run_length: float, both: bool
) -> tuple[list[float], list[tuple[int, int, bool]]]:
    """The definition, score by score."""
    before, shifts = list(calibration), list(SHIFTS) + [-d for d in SHIFTS] * both
    r, level, statistic, alarms = np.zeros(len(shifts)), [], [], []
    for t, (s, u) in enumerate(zip(score, uniform, strict=True)):
        p = (sum(b > s for b in before) + u * (1 + sum(b == s for b in before))) / (len(before) + 1)
        level.append(stats.norm.isf(p))
        before.append(s)
        r = (1 + r) * [np.exp(d * level[-1] - d * d / 2) for d in shifts]
        statistic.append(r.mean())
        if r.mean() >= run_length:
            gains = [
                sum(np.exp(sum(d * z - d * d / 2 for z in level[k:])) for d in shifts)
                for k in range(len(level))
            ]
            alarms.append((t, t + 1 - len(level) + int(np.argmax(gains)), shifts[int(r.argmax())] > 0))
            before, level, shifts = [], [], [*SHIFTS, *(-d for d in SHIFTS)]
            r = np.zeros(len(shifts))
    return statistic, alarms


@given(score=SCORES, calibration=SCORES, seed=st.integers(0, 99), both=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_loop_agrees(score: list[float], calibration: list[float], seed: int, both: bool) -> None:
    uniform = np.random.default_rng(seed).random(len(score)).tolist()
    given = (torch.tensor(values, dtype=torch.float64) for values in (score, calibration, uniform))
    found = watched(*given, 8.0, both)
    statistic, alarms = by_loop(score, calibration, uniform, 8.0, both)
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-9)
    assert [tuple(alarm) for alarm in found.alarms] == alarms


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream(3, 700, 50, 3000, moves=(2.0, -2.0))
    assert [alarm.up for alarm in whole.alarms] == [True, False]
    monkeypatch.setattr(change_alarms, "BLOCK", 7)
    pieces = stream(3, 700, 50, 3000, moves=(2.0, -2.0))
    assert pieces.alarms == whole.alarms
    assert torch.equal(pieces.statistic, whole.statistic)


@pytest.mark.parametrize("calibration", [0, 5, 500])
def test_exchangeable_scores_are_independent_normal_numbers(calibration: int) -> None:
    """Whatever their law, which has ties here, and however few are known: twenty streams together."""
    found = []
    for seed in range(1, 21):
        rng = np.random.default_rng(seed)
        score, known = rng.geometric(0.4, 1000).astype(float), rng.geometric(0.4, calibration).astype(float)
        found.append(watched(*map(torch.from_numpy, (score, known, rng.random(1000))), 1e300, False))
    assert stats.kstest(torch.cat([each.normal for each in found]).numpy(), "norm").pvalue > 0.01
    assert abs(np.mean([neighbours(each) or 0 for each in found])) < 3 / 20_000**0.5


@pytest.mark.parametrize("both", [False, True])
def test_false_alarms_come_as_late_as_promised(both: bool) -> None:
    """Streams of 1,500 scores at a run length of 100: the first alarm, and one after the other."""
    found = [stream(seed, 1500, 60, 100, both) for seed in range(40)]
    first = np.array([each.alarms[0].at + 1 if each.alarms else 1500 for each in found])
    assert 100 < first.mean() < 300
    count = np.array([len(each.alarms) for each in found])
    assert count.mean() <= 15


@pytest.mark.parametrize(("shift", "delay"), [(0.65, 80), (2.5, 15)])
def test_one_change_is_one_alarm(shift: float, delay: int) -> None:
    """2,000 scores in control, 2,000 after; ten streams."""
    found = [stream(seed, 4000, 1000, 100_000, moves=(shift,)) for seed in range(10)]
    before = [sum(alarm.at < 2000 for alarm in each.alarms) for each in found]
    after = [[alarm for alarm in each.alarms if alarm.at >= 2000] for each in found]
    assert np.mean(before) <= 1
    assert [len(alarms) for alarms in after] == [1] * 10
    assert np.mean([alarms[0].at - 1999 for alarms in after]) <= delay
    assert np.median([abs(alarms[0].start - 2000) for alarms in after]) <= (15 if shift < 1 else 2)
    assert all(alarms[0].up for alarms in after)


def test_a_return_is_a_change_and_a_first_drop_is_one_where_asked() -> None:
    alarms = stream(3, 3000, 500, 10_000, moves=(1.5, -1.5)).alarms
    assert [(alarm.up, alarm.at // 1000) for alarm in alarms] == [(True, 1), (False, 2)]
    assert stream(3, 2000, 500, 10_000, moves=(-1.5,)).alarms == ()
    assert [alarm.up for alarm in stream(3, 2000, 500, 10_000, both=True, moves=(-1.5,)).alarms] == [False]


def test_no_scores_and_infinite_ones() -> None:
    none = torch.empty(0, dtype=torch.float64)
    assert watched(none, none, none, 10.0, True).alarms == ()
    assert neighbours(watched(none, none, none, 10.0, True)) is None
    ends = torch.tensor([torch.inf, -torch.inf, 0.0, torch.inf], dtype=torch.float64)
    found = watched(ends, none, torch.full_like(ends, 0.5), 1e6, True)
    assert bool(found.normal.isfinite().all())


def test_neighbours_that_are_alike_are_told() -> None:
    rng = np.random.default_rng(0)
    score = np.convolve(rng.standard_normal(2009), np.ones(10), "valid")
    found = watched(*map(torch.from_numpy, (score, score[::3].copy(), rng.random(2000))), 1e300, True)
    assert (neighbours(found) or 0) > 0.8

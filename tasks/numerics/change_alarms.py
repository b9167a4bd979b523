"""Alarms at changes in a stream of scores, with a stated time between false ones, whatever law the scores have.

Each score has its p-value among the scores before it, ties broken by a given uniform number. While scores are exchangeable with those
before them these p-values are independent and uniform (Vovk, Nouretdinov, Gammerman, Testing exchangeability on-line, ICML (2003)), so that
z = -Phi^-1(p) are independent standard normal numbers. For a shift of the mean by d standard deviations exp(d z - d^2 / 2) is a ratio of
likelihoods of mean 1, and R = (1 + R) exp(d z - d^2 / 2) the Shiryaev-Roberts statistic: R at time t, less t, is a martingale, and so is
the mean of R over several d. The expected time until it reaches a level is therefore at least the level, and alarms that come after each
other are no more than scores / level in expectation (Roberts, Technometrics 8 (1966) 411; Pollak, Annals of Statistics 15 (1987) 749; of
such p-values Vovk, Testing randomness online, Statistical Science 36 (2021) 595; Shin, Ramdas, Rinaldo, E-detectors, arXiv 2203.03532
(2022)).

An alarm ends a level. The next is learned from the scores after the alarm alone, so that one change is one alarm, and what was promised for
the first alarm holds for each.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

SHIFTS = (0.25, 0.5, 1.0, 2.0)
"""Standard deviations by which a mean may have moved, weighted alike."""
BLOCK = 256
"""Scores that are ranked together."""
LEAST = 2.0**-53
"""P-values, and their distance from 1, are no smaller."""


class Alarm(NamedTuple):
    """A change that was told."""

    at: int
    """Score with which it was."""
    start: int
    """Score with which the change most likely began."""
    up: bool
    """Whether scores became larger."""


class Watched(NamedTuple):
    """A stream that was watched."""

    statistic: Float64[Tensor, " score"]
    """After each score; at an alarm as it was found, and anew from 0 with the score after."""
    normal: Float64[Tensor, " score"]
    """z of each score: large where it is larger than most before it of its level."""
    alarms: tuple[Alarm, ...]


def watched(
    score: Float64[Tensor, " score"],
    calibration: Float64[Tensor, " scored"],
    uniform: Float64[Tensor, " score"],
    run_length: float,
    both: bool,
) -> Watched:
    """All alarms of a stream.

    Args:
        score: in order, no NaN.
        calibration: scores of the level that the stream begins with, in any order; may be empty.
        uniform: in [0, 1], independent of the scores, and of each other.
        run_length: scores that go by in expectation, at least, until an alarm while nothing changes.
        both: whether the first level may end downwards too. All later ones may, as the return to an old level is a change.

    Cost: for n scores n^2 / 256 + n log n, and some microseconds for each, on the CPU.
    """
    score, uniform = score.cpu(), uniform.cpu()
    statistic, normal = torch.zeros_like(score), torch.zeros_like(score)
    alarms: list[Alarm] = []
    before, first = calibration.cpu(), 0
    while first < len(score):
        shifts = np.array(SHIFTS + tuple(-d for d in SHIFTS) * (both or bool(alarms)))
        level = _level(score[first:], before, uniform[first:], run_length, shifts)
        after = first + len(level.normal)
        statistic[first:after], normal[first:after] = level.statistic, level.normal
        if level.alarm is not None:
            alarms.append(Alarm(first + level.alarm.at, first + level.alarm.start, level.alarm.up))
        before, first = score[:0], after
    return Watched(statistic, normal, tuple(alarms))


class _Level(NamedTuple):
    """A stream up to its first alarm."""

    statistic: Tensor
    normal: Tensor
    alarm: Alarm | None


def _level(score: Tensor, before: Tensor, uniform: Tensor, run_length: float, shifts: np.ndarray) -> _Level:
    known, r = before.sort().values, [0.0] * len(shifts)
    statistic: list[float] = []
    normal: list[Tensor] = []
    for some, u in zip(torch.split(score, BLOCK), torch.split(uniform, BLOCK), strict=True):
        z = -torch.special.ndtri(smoothed_p(some, known, u))
        statistic += _run(z, r, shifts, run_length)
        normal.append(z)
        n = len(statistic)
        if statistic[-1] >= run_length:
            seen = torch.cat(normal)[:n]
            alarm = Alarm(n - 1, _start(seen, shifts), bool(shifts[r.index(max(r))] > 0))
            return _Level(torch.tensor(statistic, dtype=torch.float64), seen, alarm)
        known = _merged(known, some.sort().values)
    return _Level(torch.tensor(statistic, dtype=torch.float64), torch.cat(normal), None)


def smoothed_p(
    score: Float64[Tensor, " score"],
    known: Float64[Tensor, " scored"],
    uniform: Float64[Tensor, " score"],
) -> Float64[Tensor, " score"]:
    """P-value of each score among those before it, (larger ones + u (equal ones + 1)) / (all before + 1), in (0, 1).

    Args:
        score: in order.
        known: ascending: they come before all.
        uniform: u of each.

    Cost: O(score^2 + score log scored).
    """
    n, earlier = len(known), torch.ones(len(score), len(score), dtype=torch.bool).tril(-1)
    upper = n - torch.searchsorted(known, score.contiguous(), right=True)
    equal = n - torch.searchsorted(known, score.contiguous()) - upper
    upper = upper + _count(earlier & (score[None] > score[:, None]))
    equal = equal + _count(earlier & (score[None] == score[:, None]))
    size = n + 1 + torch.arange(len(score))
    return ((upper + uniform * (equal + 1)) / size).clamp(LEAST, 1 - LEAST)


def _merged(known: Tensor, some: Tensor) -> Tensor:
    """Both ascending, and so their union."""
    places = torch.searchsorted(known, some)
    return torch.from_numpy(np.insert(known.numpy(), places.numpy(), some.numpy()))


def _count(chosen: Bool[Tensor, "score other"]) -> Tensor:
    return chosen.sum(1)


def _run(z: Tensor, r: list[float], shifts: np.ndarray, run_length: float) -> list[float]:
    """The statistic after each score up to one that reaches the level; moves r."""
    ratios = np.exp(shifts * z.numpy()[:, None] - shifts**2 / 2).tolist()
    found = []
    for ratio in ratios:
        r[:] = [(1 + old) * by for old, by in zip(r, ratio, strict=True)]
        found.append(sum(r) / len(r))
        if found[-1] >= run_length:
            break
    return found


def _start(z: Tensor, shifts: np.ndarray) -> int:
    """The score from which a shift up to the last is most likely, over all sizes of shift."""
    d = torch.from_numpy(shifts)
    gain = (d[:, None] * z - d[:, None].square() / 2).flip(1).cumsum(1).flip(1)
    return int(gain.logsumexp(0).argmax())


def neighbours(found: Watched) -> float | None:
    """Correlation of scores that follow each other inside a level, which ends where a change most likely began.

    Levels are centred on their means first, so that what was learned late is no correlation. None for fewer than three scores.
    """
    parts, first = [], 0
    for alarm in (*found.alarms, None):
        level = found.normal[first : None if alarm is None else alarm.start]
        parts.append(level - level.mean() if len(level) else level)
        first = len(found.normal) if alarm is None else alarm.at + 1
    energy = sum(float(part.square().sum()) for part in parts)
    if sum(len(part) > 1 for part in parts) == 0 or energy <= 0 or len(found.normal) < 3:
        return None
    return sum(float(part[1:] @ part[:-1]) for part in parts) / energy

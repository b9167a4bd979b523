"""Intervals of numbers that have no derivative or cost much: from draws of half of the samples.

Half of the samples differ from all as all differ from the truth (the delete-d jackknife with d of half, factor 1: Shao, Wu, Annals of
Statistics 17 (1989) 1176), so that a number's spread over halves is its standard error. Rows of one sample stay together. Noise of the
computation itself, as of its own sub-samples, makes intervals wider.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from scipy.stats import t as student
from torch import Tensor

from tasks.methods.grouped_moments import Interval

FEW = 10
"""Samples below which an interval is said to rest on few."""


def draw(sample: Int64[Tensor, " row"], draws: int, seed: int) -> list[Int64[Tensor, " half"]]:
    """Rows of a half of the samples, for each draw; none for less than two samples."""
    there = torch.unique(sample)
    if len(there) < 2:
        return []
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 1])))
    halves = []
    for _ in range(draws):
        chosen = torch.from_numpy(generator.permutation(len(there))[: len(there) // 2]).to(sample.device)
        halves.append(torch.nonzero(torch.isin(sample, there[chosen])).flatten())
    return halves


def interval(
    value: float, halves: Sequence[float], confidence: float, ratio: bool = False
) -> Interval | None:
    """The number of all rows with Student's interval; without bounds where some half does not determine it; None for no number.

    Args:
        value: of all rows.
        halves: the same from each half.
        confidence: probability that the interval holds the true number.
        ratio: whether the number grows with rows, so that its relative error is what halves tell.
    """
    if not math.isfinite(value):
        return None
    known = len(halves) > 1 and all(math.isfinite(h) for h in halves)
    if not known or (ratio and not (value > 0 and min(halves) > 0)):
        return Interval(value=value, corrected=None, low=None, high=None)
    found = np.log(halves) if ratio else np.asarray(halves)
    reach = float(student.ppf(0.5 + confidence / 2, len(halves) - 1)) * float(found.std(ddof=1))
    low, high = (
        (value * math.exp(-reach), value * math.exp(reach)) if ratio else (value - reach, value + reach)
    )
    return Interval(value=value, corrected=None, low=low, high=high)


def caveats(sample: Int64[Tensor, " row"]) -> tuple[str, ...]:
    """What a reader of intervals must know."""
    n = len(torch.unique(sample))
    if n < 2:
        return (f"{n} sample: no interval can be given",)
    return (f"intervals rest on {n} samples",) if n < FEW else ()

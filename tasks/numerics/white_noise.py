"""White noise in a covariance: where its eigenvalues lie, how many stand out of it, and what it does to those that do.

Rows are noise of equal variance in every direction plus a signal of few directions (the spiked model). With g = features / rows the
eigenvalues of the noise fill the Marchenko-Pastur law between (1 - sqrt g)^2 and (1 + sqrt g)^2 times the noise's variance. An
eigenvalue l of the signal shows as l (1 + g / (l - 1)) if l > 1 + sqrt g and is lost in the noise otherwise. All holds for many rows
and features; `rows` are degrees of freedom, that is one less than rows where the mean was taken out.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float64
from scipy.special import gammaincinv
from torch import Tensor

Values = Float64[Tensor, " component"]
STEPS = 8192
"""Of the law's integral; its integrand is smooth, so that the error is far below 1e-8."""
TW_SHAPE, TW_SCALE, TW_SHIFT = 46.446, 0.186054, 9.84801
"""The Tracy-Widom law of real matrices as a shifted gamma law, right to about 1e-3 in probability (Chiani 2014, table 1)."""


class Signal(NamedTuple):
    """What the spiked model tells of each eigenvalue; NaN where it is lost in the noise."""

    value: Values
    """Without the noise's bias, the noise itself included."""
    alignment: Values
    """Squared cosine between the sample's eigenvector and the true one."""


def edge(ratio: float) -> float:
    """The upper end of the law, for noise of variance 1; `ratio`: features / rows."""
    return (1 + math.sqrt(ratio)) ** 2


def largest(width: int, rows: float, confidence: float) -> float:
    """What the largest eigenvalue of pure noise of variance 1 stays below with this probability.

    Tracy-Widom law with the centre and scale of Johnstone, Annals of Statistics 29 (2001) 295, equation 1.3 to 1.5; at least about 10 rows
    and features.
    """
    a, b = (
        math.sqrt(max(rows - 0.5, 0.5)),
        math.sqrt(max(width - 0.5, 0.5)),
    )  # halves: Ma 2012, error of second order
    quantile = TW_SCALE * float(gammaincinv(TW_SHAPE, confidence)) - TW_SHIFT
    return float(((a + b) ** 2 + quantile * (a + b) * (1 / a + 1 / b) ** (1 / 3)) / rows)


def below(x: Values, ratio: float) -> Values:
    """The share of the law below x, of the eigenvalues that are not zero, for noise of variance 1."""
    angles, share = _law(min(ratio, 1 / ratio))
    b = min(ratio, 1 / ratio)
    scaled = x / max(1.0, ratio)  # more features than rows: the eigenvalues of the Gram matrix
    cosine = ((scaled - 1 - b) / (2 * math.sqrt(b))).clamp(-1, 1)
    return _interpolate(torch.arccos(cosine), angles, share)


@cache
def median(ratio: float) -> float:
    """Of the law's eigenvalues that are not zero, for noise of variance 1."""
    angles, share = _law(min(ratio, 1 / ratio))
    b = min(ratio, 1 / ratio)
    at = _interpolate(torch.tensor([-0.5], dtype=torch.float64), -share, angles)
    return float(1 + b + 2 * math.sqrt(b) * at.cos()) * max(1.0, ratio)


def mean_of(function: Callable[[Values], Tensor], ratio: float) -> float:
    """The mean of a function of the eigenvalues, those that are zero among them, for noise of variance 1; it must be 0 at 0."""
    b = min(ratio, 1 / ratio)
    t = (torch.arange(STEPS, dtype=torch.float64) + 0.5) * (math.pi / STEPS)
    there = 1 + b + 2 * math.sqrt(b) * t.cos()
    share = 2 * t.sin().square() / there / STEPS
    return float((share * function(there * max(1.0, ratio))).sum()) * min(1.0, 1 / ratio)


def share_of_components(energy: float, ratio: float) -> float:
    """Share of the features whose leading eigenvalues hold this share of the energy, to about 1e-4; `ratio`: features / rows."""
    b = min(ratio, 1 / ratio)
    t = (torch.arange(STEPS, dtype=torch.float64) + 0.5) * (math.pi / STEPS)
    there = 1 + b + 2 * math.sqrt(b) * t.cos()
    counted = 2 * t.sin().square() / there / STEPS
    held = (counted * there).cumsum(0)
    return float(counted[held <= energy * held[-1]].sum()) * min(1.0, 1 / ratio)


def level(values: Values, rows: float) -> float:
    """The noise's variance, from the median eigenvalue: few large ones do not touch it.

    Args:
        values: all eigenvalues of the covariance, descending.
        rows: degrees of freedom.
    """
    there = values[: max(1, min(len(values), round(rows)))]
    return float(there.quantile(0.5)) / median(len(values) / rows)


def misfit(values: Values, rows: float, noise: float, spikes: int) -> float:
    """Largest difference between the share of eigenvalues beyond the spikes and that of the law (Kolmogorov-Smirnov): 0 to 1."""
    there = values[spikes : max(spikes + 1, min(len(values), round(rows)))].flip(0)
    share = below(there / noise, len(values) / rows)
    step = torch.arange(len(there) + 1, dtype=torch.float64, device=values.device) / len(there)
    return float(torch.maximum((share - step[:-1]).abs(), (share - step[1:]).abs()).max())


def signal(values: Values, rows: float, noise: float) -> Signal:
    """Eigenvalues and directions of the signal behind those of a sample.

    Baik, Ben Arous, Peche 2005; Paul 2007: the inverse of l (1 + g / (l - 1)), and (1 - g / (l - 1)^2) / (1 + g / (l - 1)).
    """
    g = len(values) / rows
    x = values / noise
    middle = x + 1 - g
    population = (middle + (middle.square() - 4 * x).clamp(min=0).sqrt()) / 2
    above = population - 1
    alignment = (1 - g / above.square()) / (1 + g / above)
    lost = x <= edge(g)
    return Signal(
        (population * noise).masked_fill(lost, math.nan), alignment.clamp(0, 1).masked_fill(lost, math.nan)
    )


def hard_threshold(ratio: float) -> float:
    """The best cut of singular values of a matrix with unknown noise, in units of their median (Gavish, Donoho 2014, equation 4).

    Args:
        ratio: shorter over longer side, up to 1.
    """
    root = math.sqrt(ratio**2 + 14 * ratio + 1)
    known = math.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + root))
    return known / math.sqrt(median(ratio))


@cache
def _law(ratio: float) -> tuple[Tensor, Tensor]:
    """The share of the law below 1 + b + 2 sqrt(b) cos(t), at angles t from 0 to pi: 2 sin^2 t / (pi (1 + b + 2 sqrt(b) cos t))."""
    t = torch.linspace(0, math.pi, STEPS + 1, dtype=torch.float64)
    root = math.sqrt(ratio)
    there = (1 - root) ** 2 + 2 * root * (1 + t.cos())
    density = torch.where(there > 0, 2 * t.sin().square() / (math.pi * there.clamp(min=1e-300)), 2 / math.pi)
    pieces = (density[1:] + density[:-1]) * (math.pi / STEPS / 2)
    whole = torch.cat([pieces.flip(0).cumsum(0).flip(0), t.new_zeros(1)])
    return t, whole / whole[0]


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear, x ascending."""
    x, y = x.to(at.device), y.to(at.device)
    k = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    part = ((at - x[k - 1]) / (x[k] - x[k - 1])).clamp(0, 1)
    return y[k - 1] + part * (y[k] - y[k - 1])

"""Two sets of samples compared feature by feature: Welch's test, the size of the effect, and p-values of many tests together."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from scipy.stats import false_discovery_control, ttest_ind_from_stats
from torch import Tensor

Correction = Literal["holm", "bh"]
EPS = torch.finfo(torch.float64).eps


class Sample(NamedTuple):
    """What is needed of one set."""

    mean: Float64[Tensor, " feature"]
    variance: Float64[Tensor, " feature"]
    """Over n - 1."""
    n: int


class Compared(NamedTuple):
    """One set against another."""

    effect: Float64[Tensor, " feature"]
    """Difference of the means over the root of the mean of both variances; 0 where means are the same, infinite where neither varies."""
    p: Float64[Tensor, " feature"]
    """Two-sided; 1 where means are the same."""


def sample_of(values: Float64[Tensor, "sample feature"]) -> Sample:
    """Mean and variance, rounding of features that never vary taken for 0.

    Args:
        values: of two samples at least.
    """
    mean, variance = values.mean(0), values.var(0)
    rounding = EPS * values.abs().amax(0) * len(values)
    return Sample(mean, torch.where(variance.sqrt() > rounding, variance, 0.0), len(values))


def compared(one: Sample, other: Sample) -> Compared:
    """The test of Welch, Biometrika 34 (1947) 28: means of two sets whose variances differ.

    Differences within rounding of both means count as none.
    """
    apart = one.mean - other.mean
    rounding = EPS * (one.n + other.n) * torch.maximum(one.mean.abs(), other.mean.abs())
    same = apart.abs() <= rounding
    both = ((one.variance + other.variance) / 2).sqrt()
    effect = torch.where(same, 0.0, apart / both)
    varies = ~same & (both > 0)
    p = same.double()
    given = [
        part.cpu().numpy()
        for sample in (one, other)
        for part in (sample.mean[varies], sample.variance[varies].sqrt())
    ]
    if bool(varies.any()):
        found = ttest_ind_from_stats(given[0], given[1], one.n, given[2], given[3], other.n, equal_var=False)
        p[varies] = torch.as_tensor(found.pvalue, dtype=p.dtype, device=p.device)
    return Compared(effect, p)


def adjusted(p: Float64[Tensor, " test"], correction: Correction) -> Float64[Tensor, " test"]:
    """P-values of tests that are made together: those at most alpha are found at that error.

    Args:
        p: in [0, 1].
        correction: holm: the chance of any false finding is at most alpha however tests depend on each other (Holm, Scandinavian Journal of
            Statistics 6 (1979) 65); bh: the expected share of false findings (Benjamini, Hochberg, JRSS B 57 (1995) 289).

    Cost: a sort.
    """
    if len(p) == 0:
        return p
    if correction == "bh":
        return torch.as_tensor(false_discovery_control(p.cpu().numpy()), dtype=p.dtype, device=p.device)
    sorted_p, order = torch.sort(p)
    left = torch.arange(len(p), 0, -1, dtype=p.dtype, device=p.device)
    found = torch.empty_like(p)
    found[order] = (sorted_p * left).cummax(0).values.clamp(max=1)
    return found

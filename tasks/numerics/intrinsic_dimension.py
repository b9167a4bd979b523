"""Intrinsic dimension from the distances of each row to its k nearest rows, by sums over rows.

If rows are uniform near a row, then ln(r_j+1 / r_j), j = 1 .. k-1, are independent and exponential with means 1 / (j d). All
estimators but one are functions of sums of such numbers; Facco's line needs the order of ln(r_2 / r_1), and takes these.

Rows with r_1 = 0 have a duplicate, for which there is no ratio, and rows with less than k neighbours no r_k: `usable` tells.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import brentq
from scipy.special import psi
from scipy.stats import chi2, ncx2
from torch import Tensor

Estimator = Literal["mle", "unbiased", "moments", "ldreg"]
Sums = dict[str, Tensor]
LDREG_SHIFT = 1e-4
QUANTILES = 15
"""Of the distance from a Gaussian's centre, in `mle_of_gaussian`."""


def usable(distance: Float64[Tensor, "row k"]) -> Bool[Tensor, " row"]:
    """Rows with k neighbours, of which none is at distance 0."""
    return (distance[:, 0] > 0) & torch.isfinite(distance[:, -1])


def gaps(distance: Float64[Tensor, "row k"]) -> Float64[Tensor, "... gap"]:
    """ln(r_j+1 / r_j)."""
    return torch.log(distance[:, 1:] / distance[:, :-1])


def log_ratios(gap: Float64[Tensor, "... gap"]) -> Float64[Tensor, "... gap"]:
    """S_m = sum of ln(r_m / r_j) over j < m, for m = 2 .. k: of rows, or of sums of their gaps. No differences of logarithms."""
    order = torch.arange(1, gap.shape[-1] + 1, dtype=gap.dtype, device=gap.device)
    return torch.cumsum(gap * order, -1)


def local(distance: Float64[Tensor, "row k"], estimator: Estimator) -> Float64[Tensor, " row"]:
    """The dimension about each row; infinite where its neighbours are all as far as the nearest.

    Args:
        distance: of usable rows, ascending.
        estimator: with S = sum of ln(r_k / r_j), j < k, and m the mean of r_j, j < k:
            mle: (k-1) / S (Levina and Bickel; Amsaleg et al.).
            unbiased: (k-2) / S, whose mean is d.
            moments: m / (r_k - m) (Amsaleg et al.).
            ldreg: k / sum of -ln(r_j / r_k + 1e-4), as the published code of LDReg has it: k over k-1 terms, which is too much by
                k / (k-1), and a shift that is too little where r_j << r_k; negative for neighbours that are nearly as far.
    """
    k = distance.shape[1]
    if estimator == "moments":
        mean = distance[:, :-1].mean(1)
        return mean / (distance[:, -1] - mean)
    if estimator == "ldreg":
        return k / -torch.log(distance[:, :-1] / distance[:, -1:] + LDREG_SHIFT).sum(1)
    return (k - 1 if estimator == "mle" else k - 2) / log_ratios(gaps(distance))[:, -1]


def sums(distance: Float64[Tensor, "row k"], group: Int64[Tensor, " row"], groups: int) -> Sums:
    """All that pooled estimators take from usable rows, by group: additive over rows.

    Cost: some passes over the distances; groups x k numbers of memory.
    """
    gap = gaps(distance)
    ratio = log_ratios(gap)
    told = ratio > 0
    one = torch.ones_like(distance[:, 0])
    moments, ldreg = (local(distance, name) for name in ("moments", "ldreg"))
    sane = told[:, -1] & torch.isfinite(moments)
    of_rows = {
        "n": one,
        "gap": gap,
        "told": told.double(),
        "log_ratio": torch.log(ratio.where(told, 1.0)),
        "inverse": (1 / ratio).where(told, 0.0),
        "log_distance": torch.log(distance),
        "moments_n": sane.double(),
        "moments": torch.log(moments.where(sane, 1.0)),
        "ldreg_n": (ldreg > 0).double(),
        "ldreg": torch.log(ldreg.where(ldreg > 0, 1.0)),
    }
    return {name: _by_group(values, group, groups) for name, values in of_rows.items()}


def mle(total: Sums) -> Float64[Tensor, " scale"]:
    """n (k-1) / sum of S_k for k = 2 .. : the inverse of the mean inverse of `local` (MacKay and Ghahramani)."""
    ratio = log_ratios(total["gap"])
    order = torch.arange(1, len(ratio) + 1, dtype=ratio.dtype, device=ratio.device)
    return total["n"] * order / ratio


def twonn(total: Sums) -> float:
    """(n - 1) / sum of ln(r_2 / r_1): unbiased for independent rows (Facco et al., by maximum likelihood)."""
    return float((total["n"] - 1) / total["gap"][0])


def levina_bickel(total: Sums) -> float:
    """The mean of (k-2) / S_k over rows that have one."""
    k = len(total["gap"]) + 1
    return float((k - 2) * total["inverse"][-1] / total["told"][-1])


def geometric(total: Sums) -> float:
    """The geometric mean of (k-1) / S_k over rows that have one."""
    return float(len(total["gap"]) * torch.exp(-total["log_ratio"][-1] / total["told"][-1]))


def geometric_of(total: Sums, estimator: Literal["moments", "ldreg"]) -> float:
    """The geometric mean of another local estimate, over rows where it is positive and finite."""
    return float(torch.exp(total[estimator] / total[f"{estimator}_n"]))


def doublings(k: int) -> list[int]:
    """1, 2, 4, .. while twice as many are among k neighbours."""
    return [1 << power for power in range((k // 2).bit_length())] if k > 1 else []


def two_scale(total: Sums) -> Float64[Tensor, " doubling"]:
    """n (psi(2 m) - psi(m)) / sum of ln(r_2m / r_m) for m = 1, 2, 4, ..: between the m-th neighbour and the 2m-th.

    The scales of Gride (Denti, Doimo, Laio, Mira 2022), by the expectation of the logarithm rather than by its likelihood:
    additive, and for m = 1 the same but for n / (n - 1).
    """
    gap = total["gap"]
    found = [float(psi(2 * m) - psi(m)) / gap[m - 1 : 2 * m - 1].sum() for m in doublings(len(gap) + 1)]
    return total["n"] * torch.stack(found)


def line(log_mu: Float64[Tensor, " row"], discard: float) -> float:
    """The slope of -ln(1 - F) on ln(r_2 / r_1) through the origin, without the largest (Facco et al. 2017).

    F of the i-th smallest of n is i / n, as in the package scikit-dimension; NaN where less than two rows are left.
    """
    n = len(log_mu)
    x = torch.sort(log_mu).values[: min(int(n * (1 - discard)), n - 1)]
    y = -torch.log1p(-torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device) / n)
    return float((x * y).sum() / x.square().sum()) if len(x) > 1 else math.nan


def censored(log_mu: Float64[Tensor, " row"], discard: float) -> float:
    """Where only the smallest m of n ratios are looked at: (m - 1) / (their sum + (n - m) the largest of them), which is unbiased."""
    x = torch.sort(log_mu).values
    m = int(len(x) * (1 - discard))
    return float((m - 1) / (x[:m].sum() + (len(x) - m) * x[m - 1])) if m > 1 else math.nan


def mle_of_gaussian(dimension: float, n: int, k: int) -> float:
    """What `mle` gives for n rows of a Gaussian: less than its dimension, the more so the fewer rows there are.

    The distance from a row at |x|^2 has a noncentral chi-squared law; the j-th nearest of n - 1 stands where that is
    exp(E ln U) of the j-th smallest of n - 1 uniform numbers; the mean is over quantiles of |x|^2.
    """
    place = np.exp(psi(np.arange(1, k + 1)) - psi(n))
    square = chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, dimension)
    found = ncx2.ppf(place[None, :], dimension, square[:, None])
    ratios = 0.5 * np.log(found[:, -1:] / found[:, :-1]).sum(1)
    return (k - 1) / float(ratios.mean())


def gaussian_of_mle(estimate: float, n: int, k: int, largest: float) -> float:
    """The dimension of the Gaussian for n rows of which `mle` gives this, to a share of 1e-5; NaN where none up to the largest does."""

    def above(dimension: float) -> float:
        return mle_of_gaussian(dimension, n, k) - estimate

    if not 0 < estimate < largest:
        return math.nan
    least, most = estimate / 2, 2 * estimate
    while above(most) < 0:
        least, most = most, 4 * most
        if most > largest:
            return math.nan
    if not above(least) <= 0 <= above(most):
        return math.nan
    return float(brentq(above, least, most, xtol=1e-5 * least, rtol=1e-5))


def _by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    none = torch.zeros((groups, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return none.index_add(0, group, values)

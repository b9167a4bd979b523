"""Covariances of few rows drawn towards equal variance in every direction, by as much as pays.

The shrunk covariance is (1 - a) S + a (tr S / features) 1, with S divided by rows. Its expected squared distance from the true one is least
for an intensity a that can be told from the rows: from their fourth moment (Ledoit, Wolf, Journal of Multivariate Analysis 88 (2004) 365,
lemma 3.2 to 3.4), or from S alone where rows are Gaussian (oracle approximating shrinkage: Chen, Wiesel, Eldar, Hero, IEEE Transactions on
Signal Processing 58 (2010) 5016, equation 23).
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from tasks.numerics import spectrum

Covariance = Float64[Tensor, "feature feature"]


def ledoit_wolf(covariance: Covariance, rows: float, fourth: float) -> float:
    """Intensity by the rows' fourth moment; 0 where nothing is to be shrunk.

    Args:
        covariance: divided by rows.
        rows: how many.
        fourth: sum over rows of |x - mean|^4.
    """
    width = len(covariance)
    mean = float(covariance.trace()) / width
    squared = float(covariance.square().sum())
    apart = squared - width * mean**2
    if apart <= 0:
        return 0.0
    noise = (fourth / rows - squared) / rows
    return min(max(noise, 0.0), apart) / apart


def oracle(covariance: Covariance, rows: float) -> float:
    """Intensity for Gaussian rows, at most 1.

    Args:
        covariance: divided by rows.
        rows: how many.
    """
    width = len(covariance)
    squared, trace = float(covariance.square().sum()) / width**2, float(covariance.trace()) / width
    apart = (rows + 1.0) * (squared - trace**2 / width)
    return 1.0 if apart <= 0 else min(1.0, (squared + trace**2) / apart)


def shrunk(covariance: Covariance, intensity: float) -> Covariance:
    """(1 - intensity) S + intensity (tr S / features) 1."""
    found = (1.0 - intensity) * covariance
    found.diagonal().add_(intensity * float(covariance.trace()) / len(covariance))
    return found


def whitening(covariance: Covariance) -> Float64[Tensor, "component feature"]:
    """Rows r with sum over components of (r . x)^2 = x' S^+ x; zeros where S is 0 by rounding.

    Raises:
        MethodError: if it is not finite, or the eigensolver fails.
    """
    found = spectrum.eigen(covariance)
    there = found.values > spectrum.floor(found.values, 0.0, "float64")
    scale = torch.where(there, found.values, 1.0).rsqrt() * there
    return found.vectors * scale[:, None]

"""What estimators give for a Gaussian: the formula against drawn rows."""

import math

import numpy as np
import pytest
import torch

from tasks.numerics import intrinsic_dimension as numerics


@pytest.mark.parametrize(("d", "n", "k"), [(3, 500, 10), (12, 1500, 20), (40, 800, 5), (6, 1000, 2)])
def test_the_formula_is_that_of_drawn_gaussians(d: int, n: int, k: int) -> None:
    """All rows of some draws, by SciPy's search; three standard errors of a mean over rows that are nearly independent."""
    from scipy.spatial import cKDTree

    inverse = []
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal((n, d))
        r = cKDTree(x).query(x, k + 1)[0][:, 1:]
        inverse.append(np.log(r[:, -1:] / r[:, :-1]).sum(1) / (k - 1))
    rows = np.concatenate(inverse)
    reach = 3 * rows.std() / math.sqrt(len(rows)) / rows.mean() + 0.01
    assert numerics.mle_of_gaussian(d, n, k) == pytest.approx(1 / rows.mean(), rel=reach)


@pytest.mark.parametrize("d", [1.5, 5.0, 20.0, 90.0])
def test_it_can_be_turned_round(d: float) -> None:
    estimate = numerics.mle_of_gaussian(d, 3000, 20)
    assert numerics.gaussian_of_mle(estimate, 3000, 20, 1e5) == pytest.approx(d, rel=1e-4)


def test_what_no_gaussian_gives_is_nan() -> None:
    assert math.isnan(numerics.gaussian_of_mle(1e6, 3000, 20, 1e5))
    assert math.isnan(numerics.gaussian_of_mle(math.inf, 3000, 20, 1e5))
    assert math.isnan(numerics.gaussian_of_mle(math.nan, 3000, 20, 1e5))


def test_lines_through_an_exact_law() -> None:
    """Ratios at the law's own quantiles: -ln(1 - F) = d ln mu, which both fits find."""
    n, d = 1000, 4.0
    log_mu = -torch.log1p(-torch.arange(1, n + 1, dtype=torch.float64) / (n + 1e-9)) / d
    shuffled = log_mu[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    for discard in (0.0, 0.1, 0.5):
        assert numerics.line(shuffled, discard) == pytest.approx(d, rel=1e-6)
    for discard in (0.1, 0.5):
        assert numerics.censored(shuffled, discard) == pytest.approx(d, rel=0.01)
    assert math.isnan(numerics.line(log_mu[:1], 0.1))
    assert math.isnan(numerics.censored(log_mu[:1], 0.1))
    assert math.isnan(numerics.line(log_mu[:0], 0.1))

"""Reverse water-filling and entropies against closed forms, and against a uniform quantiser's own error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from schemas.errors import MethodError
from tasks.numerics import rate_distortion as rd


def variances(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_one_variable_has_half_the_logarithm() -> None:
    assert rd.rate(variances(4.0), 0.25) == pytest.approx(2.0)
    assert rd.level(variances(4.0), 0.25) == pytest.approx(0.25)
    assert rd.rate(variances(4.0), 4.0) == 0
    assert rd.rate(variances(4.0), 9.0) == 0


def test_small_variances_lie_under_the_water() -> None:
    """9, 4 and 1/4 at D = 2.25: the last is dropped, the others keep an error of 1 each."""
    given = variances(0.25, 9, 4)
    assert rd.level(given, 2.25) == pytest.approx(1)
    assert rd.distortion(given, 1.0) == pytest.approx(2.25)
    assert rd.rate(given, 2.25) == pytest.approx(0.5 * math.log2(36))
    assert rd.gap(given, 6 + 0.5 * math.log2(36), 2.25) == pytest.approx(2)


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda v: max(v) > 1e-3),
    share=st.floats(1e-6, 1),
)
def test_the_level_gives_the_error_that_was_wanted(values: list[float], share: float) -> None:
    found = variances(*values)
    wanted = share * float(found.sum())
    assert rd.distortion(found, rd.level(found, wanted)) == pytest.approx(wanted, rel=1e-9)


def test_the_slope_is_that_of_the_level() -> None:
    """dR/dD = -1 / (2 theta ln 2)."""
    given, wanted, step = variances(*np.geomspace(1, 1e-4, 20)), 0.01, 1e-6
    slope = (rd.rate(given, wanted + step) - rd.rate(given, wanted - step)) / (2 * step)
    assert slope == pytest.approx(-1 / (2 * rd.level(given, wanted) * math.log(2)), rel=1e-4)


@pytest.mark.parametrize(("values", "wanted"), [((1.0,), 0.0), ((1.0,), -1.0), ((0.0, 0.0), 1.0), ((), 1.0)])
def test_no_error_or_no_variance_is_refused(values: tuple[float, ...], wanted: float) -> None:
    with pytest.raises(MethodError, match="both must be positive"):
        rd.level(variances(*values), wanted)


def test_entropy_of_counts() -> None:
    counts = torch.tensor([[5, 5, 5, 5, 0], [0, 0, 7, 0, 0], [0, 0, 0, 0, 0]])
    assert rd.entropy(counts).tolist() == pytest.approx([2, 0, 0])
    many = np.random.default_rng(0).integers(0, 50, 40)
    assert float(rd.entropy(torch.from_numpy(many))) == pytest.approx(stats.entropy(many, base=2), rel=1e-12)


def test_a_fine_step_loses_a_quarter_of_a_bit() -> None:
    """A Gaussian in steps of a tenth of its deviation: the entropy of exact probabilities, whose next term is step^2 / 24 nats."""
    step = 0.1
    edges = (np.arange(-200, 202) - 0.5) * step
    chances = np.diff(stats.norm.cdf(edges))
    bits = stats.entropy(chances, base=2)
    more = rd.SCALAR_LOSS + step**2 / (24 * math.log(2))
    assert bits - rd.rate(variances(1.0), step**2 / 12) == pytest.approx(more, abs=1e-6)
    assert pytest.approx(0.2546, abs=1e-4) == rd.SCALAR_LOSS


def test_steps_take_a_quarter_of_a_bit_beyond_the_limit() -> None:
    """Where all variances are far above the level the error is that of R(D) with 0.2546 bits less for each."""
    variances = torch.tensor([9.0, 4.0, 1.0, 0.5], dtype=torch.float64)
    found = rd.stepped_error(variances, 4 * 5.0)
    assert rd.rate(variances, found) == pytest.approx(4 * (5.0 - rd.SCALAR_LOSS))
    assert rd.stepped_error(variances, 0.0) == pytest.approx(14.5)


def test_weights_are_repetitions() -> None:
    once, twice = variances(4.0, 1.0, 0.2), variances(4.0, 1.0, 1.0, 0.2, 0.2, 0.2)
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert rd.level(once, 1.5, weights) == pytest.approx(rd.level(twice, 1.5))

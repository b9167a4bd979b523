"""Orthogonal matching pursuit, against a plain loop with least squares."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from tasks.numerics import pursuit


def loop(x: np.ndarray, entries: int, tolerance: float) -> np.ndarray:
    """Coefficients as a matrix, row by row."""
    c = np.zeros((len(x), len(x)))
    for i, target in enumerate(x):
        taken: list[int] = []
        left, fit = target, np.zeros(0)
        while len(taken) < entries and np.linalg.norm(left) > tolerance * np.linalg.norm(target):
            product = np.abs(x @ left)
            product[[i, *taken]] = 0
            if product.max() == 0:
                break
            taken.append(int(product.argmax()))
            fit = np.linalg.lstsq(x[taken].T, target, rcond=None)[0]
            left = target - fit @ x[taken]
        c[i, taken] = fit
    return c


def pursued(x: np.ndarray, entries: int, tolerance: float, cuts: list[int], floor: float = 0.0) -> np.ndarray:
    rows, index = torch.from_numpy(x), torch.arange(len(x))
    state = pursuit.begun(rows, entries)
    while bool(state["open"].any()):
        for a, b in zip([0, *cuts], [*cuts, len(x)], strict=True):
            state = pursuit.looked(state, index, rows[a:b], index[a:b])
        state = pursuit.taken(state, rows, tolerance, floor)
    place, value, share = pursuit.coefficients(state, rows)
    c = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        there = place[i] >= 0
        c[i, place[i][there]] = value[i][there]
    length = np.linalg.norm(x, axis=1)
    left = np.linalg.norm(x - c @ x, axis=1) / np.where(length > 0, length, 1)
    np.testing.assert_allclose(share, left, atol=1e-9)
    return c


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cuts", [[], [1, 40, 41]])
def test_the_coefficients_of_a_loop(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((120, 6)) @ rng.standard_normal((6, 20)) + 0.1 * rng.standard_normal((120, 20))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected, found = loop(x, 7, 1e-3), pursued(x, 7, 1e-3, cuts)
    np.testing.assert_array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_nearly_dependent_rows_lose_no_digits() -> None:
    """Of condition 1e7, whose normal equations would have 1e14."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(30)
    x = common + 1e-7 * rng.standard_normal((40, 30))
    found, expected = pursued(x, 3, 1e-12, []), loop(x, 3, 1e-12)
    same = (found != 0) == (expected != 0)
    assert same.all(axis=1).mean() > 0.9  # which of rows that differ by rounding is taken next may differ
    rows = same.all(axis=1)
    np.testing.assert_allclose((found @ x)[rows], (expected @ x)[rows], atol=1e-12 * np.abs(x).max() * 1e3)


def test_equal_rows_zeros_and_rows_without_partners() -> None:
    x = np.zeros((7, 4))
    x[0, 0] = x[1, 0] = 1.0
    x[2] = -x[0]
    x[3, 1] = 2.0
    x[4, 1], x[4, 2] = 1.0, 1.0
    found = pursued(x, 3, 1e-6, [2])
    assert np.isfinite(found).all()
    assert found[0, 1] == pytest.approx(1)
    assert found[2, 0] == pytest.approx(-1)
    assert not found[5:].any()
    assert np.count_nonzero(found[3]) == 1


def test_chance_alignment_is_the_quantile_of_the_largest_cosine() -> None:
    rng = np.random.default_rng(0)
    for n, width in ((100, 10), (1000, 50)):
        y = rng.standard_normal((400, n, width))
        y /= np.linalg.norm(y, axis=2, keepdims=True)
        largest = np.abs(y[:, :, 0]).max(1)
        assert (largest > pursuit.chance_alignment(n, width)).mean() == pytest.approx(0.05, abs=0.03)
    t = pursuit.chance_alignment(1, 9)
    assert beta.cdf(t**2, 0.5, 4) == pytest.approx(0.95)
    assert pursuit.chance_alignment(10, 1) == 1

"""Least squares regression of rows on rows: against the inverse of the matrix of rows by rows."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.methods.expressed import dense, expressed, parted
from tests.methods.test_k_subspaces import union


def by_hand(x: np.ndarray, ridge: float, form: str) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    inverse = np.linalg.inv(unit @ unit.T + ridge * np.eye(len(x)))
    c = inverse @ (unit @ unit.T) if form == "lsr2" else -inverse / inverse.diagonal()[:, None]
    np.fill_diagonal(c, 0)
    return c


@pytest.mark.parametrize("form", ["lsr1", "lsr2"])
@pytest.mark.parametrize(("n", "width"), [(40, 60), (90, 20)])
def test_the_coefficients_of_the_inverse(n: int, width: int, form: str) -> None:
    x = np.random.default_rng(n).standard_normal((n, width))
    for ridge in (0.01, 0.5):
        answer = expressed("lsr", x, ridge=ridge, form=form, entries=n - 1)
        np.testing.assert_allclose(dense(answer), by_hand(x, ridge, form), atol=1e-9)
        np.testing.assert_allclose(answer.arrays["kept"], 1, rtol=1e-6)


def test_each_row_is_a_regression_on_the_others() -> None:
    x = np.random.default_rng(2).standard_normal((30, 8))
    answer = expressed("lsr", x, ridge=0.3, entries=29)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i, coefficient in enumerate(dense(answer)):
        others = np.delete(unit, i, 0)
        found = Ridge(alpha=0.3, fit_intercept=False).fit(others.T, unit[i]).coef_
        np.testing.assert_allclose(np.delete(coefficient, i), found, atol=1e-9)


def test_the_largest_coefficients_and_their_share() -> None:
    x = np.random.default_rng(1).standard_normal((70, 9))
    answer, c = expressed("lsr", x, ridge=0.2, entries=6), by_hand(x, 0.2, "lsr1")
    order = np.argsort(-np.abs(c), axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(answer.arrays["index"], order)
    kept = np.take_along_axis(np.abs(c), order, 1).sum(1) / np.abs(c).sum(1)
    np.testing.assert_allclose(answer.arrays["kept"], kept, rtol=1e-5)
    second = (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    s = np.linalg.svd(second, compute_uv=False) ** 2
    assert answer.result.effective_dimension == pytest.approx((s / (s + 0.2)).sum())


def test_independent_subspaces_are_found() -> None:
    x, of = union(0, 4, 5, 40, 30, noise=0.05)
    result = parted(expressed("lsr", x), of, clusters=4).result
    assert result.accuracy == 1
    assert result.wrong_share < 0.2

"""Rows as sparse combinations of all others: against scikit-learn on all rows, certificates, affine rows, and small working sets."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import ElasticNet

from tests.methods.expressed import dense, expressed, parted
from tests.methods.test_k_subspaces import union


def objective(c: np.ndarray, others: np.ndarray, row: np.ndarray, tau: float, gamma: float) -> float:
    return float(
        tau * np.abs(c).sum() + (1 - tau) / 2 * (c @ c) + gamma / 2 * ((row - c @ others) ** 2).sum()
    )


@pytest.mark.parametrize(("tau", "gamma"), [(0.9, 50.0), (1.0, 50.0), (0.5, 4.0)])
def test_the_minimum_over_all_rows(tau: float, gamma: float) -> None:
    """Working with few columns at a time: the coefficients of a solver that takes all, and none has a lower objective."""
    x, _ = union(0, 4, 5, 40, 40, noise=0.1)
    answer = expressed("elastic_net", x, tau=tau, gamma=gamma, columns=16, entries=24)
    assert answer.result.uncertified == 0
    assert answer.result.largest_violation < 1e-8
    unit, c = x / np.linalg.norm(x, axis=1, keepdims=True), dense(answer)
    for i in range(0, len(unit), 23):
        others = np.delete(unit, i, 0)
        weight = gamma * tau / np.abs(others @ unit[i]).max()
        model = ElasticNet(
            alpha=1 / (weight * x.shape[1]), l1_ratio=tau, fit_intercept=False, tol=1e-12, max_iter=100_000
        )
        found, ours = model.fit(others.T, unit[i]).coef_, np.delete(c[i], i)
        np.testing.assert_allclose(ours, found, atol=1e-7)
        gap = objective(ours, others, unit[i], tau, weight) - objective(found, others, unit[i], tau, weight)
        assert gap <= 1e-9


def test_coefficients_that_sum_to_one() -> None:
    """Affine: against a general solver, on rows away from the origin; moving all rows changes nothing but what `gamma` is scaled by."""
    x, of = union(1, 3, 2, 8, 30, noise=0.01, offset=3.0)
    options = {"tau": 1.0, "affine": True, "entries": 30, "preparation": {"unit_length": False}}
    answer = expressed("elastic_net", x, gamma=200.0, **options)
    assert answer.result.uncertified == 0
    c = dense(answer)
    np.testing.assert_allclose(c.sum(1), 1, atol=1e-9)
    i, others = 4, np.delete(x, 4, 0)
    weight = 200.0 / np.abs(others @ x[i]).max()

    def cost(both: np.ndarray) -> float:
        part = both[: len(others)] - both[len(others) :]
        return float(both.sum() + weight / 2 * ((x[i] - part @ others) ** 2).sum())

    start = np.r_[np.full(len(others), 1 / len(others)), np.zeros(len(others))]
    held = {"type": "eq", "fun": lambda both: both[: len(others)].sum() - both[len(others) :].sum() - 1}
    best = minimize(
        cost,
        start,
        bounds=[(0, None)] * len(start),
        constraints=held,
        options={"maxiter": 500, "ftol": 1e-13},
    )
    ours = np.delete(c[i], i)
    assert cost(np.r_[np.maximum(ours, 0), np.maximum(-ours, 0)]) <= best.fun * (1 + 1e-6)
    assert parted(answer, of, clusters=3).result.accuracy == 1


def test_rows_that_need_more_columns_than_they_may_work_with_are_told() -> None:
    x = np.random.default_rng(0).standard_normal((80, 30))
    few, enough = (
        expressed("elastic_net", x, tau=0.5, gamma=200.0, columns=columns, entries=20) for columns in (4, 60)
    )
    assert few.result.uncertified > 70
    assert enough.result.uncertified == 0
    assert enough.result.kept < 1


def test_equal_rows_zeros_and_orthogonal_ones() -> None:
    x = np.zeros((9, 4))
    x[0, 0] = x[1, 0] = 1.0
    x[2, 0] = -2.0
    x[3, 1] = 1.0
    x[4:7] = np.random.default_rng(0).standard_normal((3, 4))
    answer = expressed("elastic_net", x, columns=6, entries=6)
    c = dense(answer)
    assert np.isfinite(c).all()
    assert not c[7:].any()
    assert answer.result.uncertified == 0
    assert (c[0] != 0).sum() >= 2  # equal rows share what is below one half of the penalty's squares


def test_cuts_and_groups_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.methods.clustering import elastic_net

    x, _ = union(2, 3, 4, 20, 40, noise=0.2)
    whole = dense(expressed("elastic_net", x, 1))
    monkeypatch.setattr(elastic_net, "MOST_BYTES", 8 * 150 * 320 * 7)
    np.testing.assert_allclose(dense(expressed("elastic_net", x, 4)), whole, atol=1e-9)


def test_looks_in_single_precision_end_and_are_near() -> None:
    x, _ = union(3, 3, 4, 30, 60, noise=0.2)
    exact, fast = (expressed("elastic_net", x, precision=p) for p in ("float64", "float32"))
    assert fast.result.uncertified == 0
    np.testing.assert_allclose(dense(fast), dense(exact), atol=1e-4)

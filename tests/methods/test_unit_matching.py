"""geometry.unit_matching: a planted permutation, exhaustive search, scikit-learn's lasso, planted blocks, chance."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.geometry import unit_matching as method
from tasks.numerics.lasso import lasso
from tests.methods import joined


def run(x: np.ndarray, y: np.ndarray, **options: Any) -> tuple[method.Result, dict[str, np.ndarray]]:
    result, arrays = joined.run(method, x, y, **{"blocks": 2, **options})
    assert isinstance(result, method.Result)
    return result, arrays


def test_a_planted_permutation_is_recovered() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 12)) * np.arange(1, 13) + 5
    order = rng.permutation(12)
    result, arrays = run(x, 3 * x[:, order] + 0.5 * rng.standard_normal((400, 12)))
    np.testing.assert_array_equal(order[arrays["match"]], np.arange(12))
    assert result.mutual == 1
    assert result.matched is not None
    assert result.matched.value > 0.95
    assert result.matched_held_out == pytest.approx(result.matched.value, abs=0.02)
    turned, arrays = run(x, -x[:, order], signed=False)
    np.testing.assert_array_equal(order[arrays["match"]], np.arange(12))
    assert arrays["correlation"] == pytest.approx(-1)
    assert turned.matched is not None
    assert turned.matched.value == pytest.approx(1)


def test_the_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 5))
    y = x @ rng.standard_normal((5, 7)) + rng.standard_normal((50, 7))
    result, arrays = run(x, y)
    r = np.corrcoef(x.T, y.T)[:5, 5:]
    totals = [r[np.arange(5), list(p)].mean() for p in permutations(range(7), 5)]
    assert result.matched is not None
    assert result.matched.value == pytest.approx(max(totals))
    assert result.best is not None
    assert result.best.value == pytest.approx(r.max(1).mean())
    np.testing.assert_array_equal(arrays["best"], r.argmax(1))
    np.testing.assert_allclose(arrays["correlation"], r[np.arange(5), arrays["match"]], rtol=1e-10)


def test_lasso_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((80, 9)), rng.standard_normal((80, 4))
    y[:, 0] += 2 * x[:, 3] - x[:, 5]
    x[:, 8] = x[:, 7]
    found = lasso(torch.from_numpy(x.T @ x / 80), torch.from_numpy(x.T @ y / 80), 0.15, 5000, 1e-12)
    assert found.violation < 1e-12
    for k in range(4):
        fit = Lasso(alpha=0.15, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y[:, k])
        np.testing.assert_allclose(x @ found.weights[:, k].numpy(), fit.predict(x), atol=1e-8)


def test_units_made_of_several_are_predicted_sparsely() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2000, 20))
    y = np.stack([x[:, k] + x[:, k + 5] - x[:, k + 10] for k in range(5)], 1) + 0.1 * rng.standard_normal(
        (2000, 5)
    )
    result, arrays = run(x, y, penalty=0.1)
    assert arrays["n_predictors"].tolist() == [3] * 5
    assert result.single_r2 == pytest.approx(1 / 3, abs=0.05)
    assert result.sparse_r2 is not None
    assert result.sparse_r2 > 0.9
    assert result.sparse_r2_held_out == pytest.approx(result.sparse_r2, abs=0.02)
    few, arrays = run(x, y, targets=2)
    assert len(arrays["predicted"]) == 2
    assert few.n_predictors == 3


def test_blocks_of_units_are_found() -> None:
    rng = np.random.default_rng(4)
    hidden = rng.standard_normal((500, 3))
    side = np.arange(12) % 3
    x, y = (hidden[:, side] @ np.eye(12) + rng.standard_normal((500, 12)) for _ in range(2))
    result, arrays = run(x, y, blocks=3)
    for labels in (arrays["block_x"], arrays["block_y"]):
        assert len(set(zip(side.tolist(), labels.tolist(), strict=True))) == 3
    np.testing.assert_array_equal(arrays["block_x"], arrays["block_y"])
    assert result.block_share is not None
    assert result.block_share > 0.9
    assert result.block_share_null == pytest.approx(1 / 3)


def test_independent_rows_match_as_chance_says_and_not_out_of_sample() -> None:
    rng = np.random.default_rng(5)
    result, _ = run(rng.standard_normal((100, 40)), rng.standard_normal((100, 40)), penalty=0.3)
    assert result.matched is not None
    assert result.best is not None
    assert result.matched.value == pytest.approx(result.matched_null, rel=0.08)
    assert result.best.value == pytest.approx(result.best_null, rel=0.08)
    assert result.matched_held_out == pytest.approx(0, abs=0.06)
    assert result.best_held_out == pytest.approx(0, abs=0.06)
    assert any("read held-out values" in note for note in result.caveats)


def test_constant_units_have_no_match() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((60, 5))
    y = x.copy()
    y[:, 2], x[:, 4] = 1.0, 0.0
    result, arrays = run(x, y)
    assert (result.n_constant_x, result.n_constant_y) == (1, 1)
    assert arrays["match"].tolist() == [0, 1, -1, 3, -1] or arrays["match"][[0, 1, 3]].tolist() == [0, 1, 3]
    assert arrays["match"][4] == -1
    assert arrays["block_x"][4] == -1
    dead, arrays = run(np.ones((20, 3)), np.ones((20, 3)))
    assert (dead.matched, dead.n_blocks, dead.sparse_r2) == (None, 0, None)
    assert arrays["match"].tolist() == [-1] * 3


def test_wide_sites_are_refused_early() -> None:
    with pytest.raises(MethodError, match=r"5000 features, at most 4096 are taken; .* [\d,]+ bytes"):
        method.check(Inputs(widths={"x": 5000, "y": 4}, n_rows=5, n_samples=5), method.Config())

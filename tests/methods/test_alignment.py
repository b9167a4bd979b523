"""geometry.alignment: scikit-learn's and textbook values, a rotated copy, chance, and held-out samples."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.linear_model import LinearRegression

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.geometry import alignment as method
from tasks.numerics import near_orthogonal
from tasks.numerics.split import spread
from tests.methods import joined


def run(x: np.ndarray, y: np.ndarray, **options: Any) -> tuple[method.Result, dict[str, np.ndarray]]:
    result, arrays = joined.run(method, x, y, **{"variance": 1.0, "iterations": 20, **options})
    assert isinstance(result, method.Result)
    return result, arrays


def related(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)) * np.arange(1, 7) + 3
    mix = np.random.default_rng(99).standard_normal((6, 4))
    return x, x @ mix + 4 * rng.standard_normal((n, 4)) - 8


def turn_of(d: int, seed: int = 1) -> np.ndarray:
    found: np.ndarray = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    return found


def test_canonical_correlations_are_those_of_qr() -> None:
    x, y = related(300)
    result, arrays = run(x, y)
    qx, qy = (np.linalg.qr(side - side.mean(0))[0] for side in (x, y))
    expected = np.linalg.svd(qx.T @ qy, compute_uv=False)
    np.testing.assert_allclose(arrays["correlation"], expected, rtol=1e-10)
    assert result.svcca is not None
    assert result.svcca.value == pytest.approx(expected.mean())
    variates = (x - x.mean(0)) @ arrays["weights_x"].T, (y - y.mean(0)) @ arrays["weights_y"].T
    for one in variates:
        np.testing.assert_allclose(one.T @ one / 300, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(variates[0].T @ variates[1] / 300, np.diag(expected), atol=1e-10)
    alpha = np.abs((x - x.mean(0)).T @ variates[0]).sum(0)
    assert result.pwcca is not None
    assert result.pwcca.value == pytest.approx((alpha * expected).sum() / alpha.sum())


def test_regression_and_rotation_are_those_of_libraries() -> None:
    x, y = related(300)
    result, arrays = run(x, y)
    assert result.r2_y_from_x is not None
    assert result.r2_x_from_y is not None
    for found, a, b in ((result.r2_y_from_x, x, y), (result.r2_x_from_y, y, x)):
        rest = b - LinearRegression().fit(a, b).predict(a)
        expected = 1 - (rest**2).sum() / ((b - b.mean(0)) ** 2).sum()
        assert found.value == pytest.approx(expected, rel=1e-10)
    wide = np.concatenate([y, np.zeros((300, 2))], 1)
    a, b = (side - side.mean(0) for side in (x, wide))
    turn, total = scipy.linalg.orthogonal_procrustes(a, b)
    cosine = total / np.linalg.norm(a) / np.linalg.norm(b)
    assert result.rotation is not None
    assert result.rotation.value == pytest.approx(cosine, rel=1e-10)
    assert result.rotation_distance == pytest.approx(math.sqrt(2 - 2 * cosine), rel=1e-9)
    np.testing.assert_allclose(arrays["rotation"], turn[:, :4], atol=1e-9)
    scaled = cosine * np.linalg.norm(b) / np.linalg.norm(a) * a @ turn
    assert result.rotation_residual == pytest.approx(((b - scaled) ** 2).sum() / (b**2).sum(), rel=1e-9)


def test_held_out_values_are_those_of_rows_left_out() -> None:
    x, y = related(200)
    result, _ = run(x, y, groups=4)
    rest = total = 0.0
    for group in range(4):
        out = spread(torch.arange(200), 4).numpy() == group
        fit = LinearRegression().fit(x[~out], y[~out])
        rest += ((y[out] - fit.predict(x[out])) ** 2).sum()
        total += ((y[out] - y[~out].mean(0)) ** 2).sum()
    assert result.r2_y_from_x_held_out == pytest.approx(1 - rest / total, rel=1e-9)


def test_a_rotated_copy_is_found() -> None:
    x, _ = related(200)
    turn = turn_of(6)
    result, arrays = run(x, 5 * x @ turn + 100)
    np.testing.assert_allclose(arrays["correlation"], 1, atol=1e-9)
    np.testing.assert_allclose(arrays["rotation"], turn, atol=1e-8)
    np.testing.assert_allclose(arrays["near_orthogonal"], turn, atol=1e-8)
    for name in ("rotation_residual", "near_orthogonal_residual", "near_orthogonal_deviation"):
        assert getattr(result, name) == pytest.approx(0, abs=1e-9)
    for name in ("svcca", "pwcca", "r2_y_from_x", "r2_x_from_y", "rotation"):
        assert getattr(result, name).value == pytest.approx(1, abs=1e-9)
        assert getattr(result, f"{name}_held_out") == pytest.approx(1, abs=1e-6)


def test_independent_rows_correlate_as_chance_says_and_not_out_of_sample() -> None:
    rng = np.random.default_rng(0)
    result, arrays = run(rng.standard_normal((600, 60)), rng.standard_normal((600, 90)))
    assert result.correlations[0] == pytest.approx(result.correlation_null, rel=0.06)
    assert (arrays["correlation"] ** 2).mean() == pytest.approx(result.svcca_null**2, rel=0.03)
    assert result.n_correlated <= 2
    assert result.svcca_held_out == pytest.approx(0, abs=0.03)
    assert result.rotation_held_out == pytest.approx(0, abs=0.03)
    assert result.r2_y_from_x is not None
    assert result.r2_y_from_x.value == pytest.approx(result.r2_null_y_from_x, rel=0.05)
    assert result.r2_y_from_x_held_out is not None
    assert result.r2_y_from_x_held_out < 0


def test_fewer_rows_than_components_say_so() -> None:
    rng = np.random.default_rng(0)
    result, _ = run(rng.standard_normal((30, 40)), rng.standard_normal((30, 40)))
    assert result.correlation_null == 1
    assert result.svcca is not None
    assert result.svcca.value == pytest.approx(1)
    assert any("1 by chance" in note for note in result.caveats)


def test_leading_components_and_ridge() -> None:
    x, y = related(300)
    small, _ = run(x, y, variance=0.6)
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert small.rank_x == int((np.cumsum(values) < 0.6 * values.sum()).sum()) + 1
    ridged, _ = run(x, y, ridge=10.0)
    assert ridged.correlations[0] < run(x, y)[0].correlations[0]


def test_intervals_hold_the_truth_of_dependent_rows() -> None:
    """Samples of four rows that are almost one row."""
    a, b = (side - side.mean(0) for side in related(60_000, 1))
    truth = np.linalg.svd(a.T @ b, compute_uv=False).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    hits = []
    for seed in range(16):
        x, y = (np.repeat(side, 4, 0) for side in related(150, 100 + seed))
        y += 0.01 * np.random.default_rng(seed).standard_normal(y.shape)
        found = run(x, y, per_sample=4, iterations=1)[0].rotation
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) >= 0.8


def moments(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = related(500, seed)
    x, y = x - x.mean(0), (y - y.mean(0)) / 10
    return tuple(torch.from_numpy(m / 500) for m in (x.T @ x, x.T @ y, y.T @ y))  # type: ignore[return-value]


def test_a_wide_deviation_gives_least_squares_and_none_a_rotation() -> None:
    xx, xy, yy = moments()
    free = near_orthogonal.solve(xx, xy, yy, 1e6, 2000)
    np.testing.assert_allclose(free.weights, torch.linalg.solve(xx, xy), rtol=2e-3, atol=1e-3)
    bound = near_orthogonal.solve(xx, xy, yy, 0.0, 200)
    assert bound.deviation < 1e-12
    assert near_orthogonal.value(xx, xy, yy, bound.weights) >= near_orthogonal.value(xx, xy, yy, free.weights)


@pytest.mark.parametrize("limit", [0.1, 0.7, 1.5])
def test_no_map_within_the_deviation_is_nearer(limit: float) -> None:
    xx, xy, yy = moments()
    found = near_orthogonal.solve(xx, xy, yy, limit, 400)
    assert found.deviation <= limit * (1 + 1e-9)
    least = near_orthogonal.value(xx, xy, yy, found.weights)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(12):
            step = size * torch.randn(found.weights.shape, generator=generator, dtype=torch.float64)
            other = near_orthogonal.project(found.weights + step, limit)
            assert near_orthogonal.deviation(other) <= limit * (1 + 1e-9)
            assert near_orthogonal.value(xx, xy, yy, other) >= least * (1 - 1e-6)


def test_projection_is_the_nearest_map() -> None:
    """Against a fine grid of singular values."""
    weights = torch.diag(torch.tensor([0.2, 1.9], dtype=torch.float64))
    found = torch.linalg.svdvals(near_orthogonal.project(weights, 0.8)).flip(0).numpy()
    axis = np.linspace(0, 2, 2001)
    a, b = np.meshgrid(axis, axis, indexing="ij")
    inside = (a**2 - 1) ** 2 + (b**2 - 1) ** 2 <= 0.64
    away = np.where(inside, (a - 0.2) ** 2 + (b - 1.9) ** 2, np.inf)
    assert ((found**2 - 1) ** 2).sum() == pytest.approx(0.64, rel=1e-9)
    assert away.min() - 1e-3 <= ((found - [0.2, 1.9]) ** 2).sum() <= away.min()


def test_bad_input() -> None:
    x, y = related(50)
    flat, arrays = run(np.ones((50, 3)), y)
    assert (flat.rank_x, flat.svcca, flat.rotation, flat.near_orthogonal_residual) == (0, None, None, None)
    assert arrays["correlation"].shape == (0,)
    alone, _ = run(x[:1], y[:1])
    assert alone.svcca is None
    assert any("one group" in note for note in alone.caveats)
    with pytest.raises(MethodError, match=r"9000 features, at most 8192 are taken; .* [\d,]+ bytes"):
        method.check(Inputs(widths={"x": 9000, "y": 4}, n_rows=5, n_samples=5), method.Config())

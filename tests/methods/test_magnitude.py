"""geometry.magnitude: two points, points on a line, far points, and its derivative against differences."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import magnitude as method
from tasks.numerics import distances
from tasks.numerics.magnitude import magnitude


def run(
    x: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[method.Result, dict[str, np.ndarray]]:
    config, index = method.Config.model_validate(options), torch.arange(len(x))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    method.check(inputs, config)
    block = Block({"x": x}, index if sample is None else sample, index, index)
    result, arrays = method.solve(block, inputs, config)
    return result, {name: array.values.numpy() for name, array in arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_two_points() -> None:
    distance = torch.tensor([[0, 3.0], [3.0, 0]], dtype=torch.float64)
    for t in (1e-6, 0.1, 1.0, 40.0):
        found = magnitude(distance, t)
        fell = math.exp(-3 * t)
        assert found.value == pytest.approx(2 / (1 + fell), rel=1e-9)
        assert found.growth == pytest.approx(3 * t * fell / (1 + fell), rel=1e-6)
        assert found.condition == pytest.approx((1 + fell) / (1 - fell), rel=0.01)


def test_points_on_a_line() -> None:
    """Equally spaced by h: 1 + (n - 1) tanh(t h / 2)."""
    distance = distances.pairwise(torch.arange(30, dtype=torch.float64)[:, None] * 0.4)
    for t in (0.01, 0.5, 7.0):
        assert magnitude(distance, t).value == pytest.approx(1 + 29 * math.tanh(t * 0.2), rel=1e-9)
    fine = distances.pairwise(torch.linspace(0, 40, 1500, dtype=torch.float64)[:, None])
    assert magnitude(fine, 1.0).growth == pytest.approx(
        20 / 21, rel=1e-3
    )  # of a line of length 40 t: 1 + 20 t


def test_a_general_solver_agrees_and_the_growth_is_the_derivative() -> None:
    distance = distances.pairwise(drawn(50, 4))
    for t in (0.3, 2.0):
        found = magnitude(distance, t)
        similarity = np.exp(-t * distance.numpy())
        weight = np.linalg.solve(similarity, np.ones(50))
        np.testing.assert_allclose(found.weight, weight, rtol=1e-8)
        assert found.value == pytest.approx(weight.sum(), rel=1e-10)
        up, down = (np.linalg.inv(np.exp(-t * f * distance.numpy())).sum() for f in (1.0001, 0.9999))
        assert found.growth == pytest.approx((math.log(up) - math.log(down)) / 2e-4, rel=1e-5)
        assert found.condition == pytest.approx(np.linalg.cond(similarity), rel=0.3)


def test_far_points_are_as_many_as_they_are() -> None:
    result, arrays = run(torch.eye(25).double() * 50, scales=(1.0, 1e3))
    assert arrays["magnitude"][1] == pytest.approx(25)
    assert arrays["low"][1] == pytest.approx(25)
    assert result.n_failed == 0
    assert result.median_distance == pytest.approx(50 * math.sqrt(2))


def test_the_scale_of_rows_does_not_matter_and_a_gaussian_is_its_null() -> None:
    x = drawn(300, 6)
    one, other = run(x)[0], run(x * 1e5 + 3e6)[0]
    assert one.effective_points is not None
    assert other.effective_points is not None
    assert one.dimension is not None
    assert one.dimension_gaussian is not None
    assert one.effective_points.low is not None
    assert one.effective_points.high is not None
    assert one.effective_points.value == pytest.approx(other.effective_points.value, rel=1e-7)
    assert one.effective_points.value == pytest.approx(one.effective_points_gaussian, rel=0.05)
    assert one.dimension.value == pytest.approx(one.dimension_gaussian, rel=0.1)
    assert one.effective_points.low < one.effective_points.value < one.effective_points.high


def test_dimensions_are_in_order() -> None:
    found = []
    for d in (1, 2, 4):
        basis = torch.linalg.qr(drawn(12, d))[0]
        result, _ = run(
            torch.rand(600, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d)) @ basis.T
        )
        assert result.dimension is not None
        found.append(result.dimension.value)
    assert found[0] == pytest.approx(1, abs=0.15)
    assert found[1] == pytest.approx(1.7, abs=0.4)
    assert found[0] < found[1] < found[2] < 4


def test_outer_points_have_large_weights() -> None:
    x = drawn(200, 2)
    _, arrays = run(x)
    length = x.norm(dim=1).numpy()
    outer = arrays["weight"][length > np.quantile(length, 0.9)].mean()
    assert outer > 3 * arrays["weight"][length < np.quantile(length, 0.5)].mean()


def test_equal_rows_count_once() -> None:
    x = drawn(40, 3)
    result, arrays = run(torch.cat([x, x[:7]]))
    alone, expected = run(x)
    assert result.n_duplicates == 7
    np.testing.assert_array_equal(arrays["row"], np.arange(40))
    np.testing.assert_allclose(arrays["magnitude"], expected["magnitude"], rtol=1e-9)
    assert alone.n_duplicates == 0
    single, arrays = run(torch.ones(5, 3).double())
    assert (single.n_duplicates, single.median_distance) == (4, None)
    np.testing.assert_allclose(arrays["magnitude"], 1)


def test_rows_that_are_nearly_equal_are_said() -> None:
    x = torch.cat([drawn(40, 3), drawn(40, 3) + 1e-13])
    result, arrays = run(x, scales=(1e-9, 1.0))
    assert any("conditions" in note or "no answer" in note for note in result.caveats)
    assert result.n_failed == np.isnan(arrays["magnitude"]).sum()


def test_two_runs_are_equal_and_bad_scales_are_refused() -> None:
    assert run(drawn(50, 3))[0] == run(drawn(50, 3))[0]
    for scales in ((1.0, 1.0), (0.0, 1.0), (1.0, math.inf)):
        with pytest.raises(MethodError, match="ascending numbers above 0"):
            run(drawn(9, 3), scales=scales)

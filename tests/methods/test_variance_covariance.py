"""spectrum.variance_covariance: a loop over features, planted collapse, copies, and what few rows make of nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import variance_covariance as method


def run(
    x: Tensor, sample: Tensor | None = None, weight: Tensor | None = None, **options: Any
) -> tuple[method.Result, dict[str, np.ndarray]]:
    sample = torch.arange(len(x)) if sample is None else sample
    config = method.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    method.check(inputs, config)
    carry, state = method.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        block = Block(
            {"x": x[part]}, sample[part], part, part, weight=None if weight is None else weight[part]
        )
        other = method.partial(block, carry, config)
        state = other if state is None else method.merge(state, other)
    assert state is not None
    result, arrays = method.finish(state, carry, inputs, config)
    return result, {name: array.values.numpy() for name, array in arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(found: Any) -> float:
    assert found is not None
    return float(found.value)


@pytest.mark.parametrize("scale", ["stored", "unit"])
def test_a_loop_over_features_agrees(scale: str) -> None:
    x = drawn(80, 6) @ drawn(6, 6, 1) + 50
    result, arrays = run(x, gamma=1.7, epsilon=0.01, scale=scale)
    z = x.numpy() - x.numpy().mean(0)
    z = z / math.sqrt((z**2).sum() / 79 / 6) if scale == "unit" else z
    hinge, square, cosine = 0.0, 0.0, []
    for i in range(6):
        hinge += max(0.0, 1.7 - math.sqrt(z[:, i] @ z[:, i] / 79 + 0.01)) / 6
        for j in range(6):
            if i != j:
                square += (z[:, i] @ z[:, j] / 79) ** 2 / 6
                cosine.append(np.corrcoef(z[:, i], z[:, j])[0, 1] ** 2)
    assert value(result.variance) == pytest.approx(hinge, rel=1e-10, abs=1e-14)
    assert value(result.covariance) == pytest.approx(square, rel=1e-10)
    assert value(result.correlation) == pytest.approx(np.mean(cosine), rel=1e-10)
    assert value(result.collapsed) == pytest.approx((z.std(0, ddof=1) < 1.7).mean())
    np.testing.assert_allclose(arrays["redundancy"], np.reshape(cosine, (6, 5)).mean(1), rtol=1e-9)


def test_planted_collapse() -> None:
    """Half of the features nearly constant, one constant: the term is the mean of what they miss."""
    x = 2 * drawn(4000, 8)
    x[:, 4:] *= 0.05
    x[:, 7] = 12345.678
    result, arrays = run(x, epsilon=0.0)
    assert value(result.collapsed) == 0.5
    assert result.constant == 1
    assert value(result.variance) == pytest.approx((3 * 0.9 + 1) / 8, rel=0.01)
    assert arrays["std"][7] == 0
    assert np.isnan(arrays["redundancy"][7])
    assert result.least_std == 0


def test_copies_are_seen_and_chance_is_known() -> None:
    one = drawn(20_000, 1)
    result, _ = run(torch.cat([one, one, -one, drawn(20_000, 1, 2)], 1))
    assert value(result.correlation) == pytest.approx(6 / 12, abs=0.01)
    assert value(result.covariance) == pytest.approx(6 / 4, rel=0.08)
    x = drawn(60, 30) * torch.linspace(0.5, 2, 30).double()
    none, _ = run(x)
    assert none.covariance_random is not None
    assert none.correlation_random == pytest.approx(1 / 59)
    assert value(none.covariance) == pytest.approx(none.covariance_random, rel=0.25)
    assert value(none.correlation) == pytest.approx(1 / 59, rel=0.15)
    assert none.correlation is not None
    assert none.correlation.corrected is not None
    assert none.correlation.corrected < 0.6 / 59


def test_weights_count_rows() -> None:
    x, weight = drawn(50, 4), torch.rand(50).double()
    weight[:7] = 0
    result, arrays = run(x, weight=weight)
    w = weight.numpy()
    spread = np.cov(x.numpy().T, aweights=w)
    np.testing.assert_allclose(arrays["std"], np.sqrt(np.diag(spread)), rtol=1e-10)
    assert result.n_rows == 43
    with pytest.raises(MethodError, match="not negative"):
        run(x, weight=weight - 1)


def test_too_few_rows() -> None:
    with pytest.raises(MethodError, match="at least 2"):
        run(drawn(1, 3))
    two, _ = run(drawn(2, 3))
    assert two.variance is not None
    assert two.variance.low is None
    flat, arrays = run(torch.full((30, 3), 7.25).double())
    assert flat.correlation is None
    assert value(flat.variance) == pytest.approx(1 - 0.01)
    assert flat.constant == 3
    assert np.isnan(arrays["redundancy"]).all()


def test_intervals_cover_dependent_rows() -> None:
    mix = drawn(5, 5, 7)
    truth = mix.T @ mix
    expected = float(truth.square().sum() - truth.diagonal().square().sum()) / 5
    hits = []
    for seed in range(25):
        rows = (drawn(150, 5, seed) @ mix).repeat_interleave(8, 0)
        found = run(rows, torch.arange(150).repeat_interleave(8), groups=10)[0].covariance
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= expected <= found.high)
    assert 0.85 <= np.mean(hits) <= 1

"""geometry.uniformity: known values, numpy's own, and intervals that cover."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import uniformity
from tasks.numerics.split import spread


def run(
    x: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[uniformity.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = uniformity.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    carry, state = uniformity.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = uniformity.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
        state = other if state is None else uniformity.merge(state, other)
    assert state is not None
    return uniformity.finish(state, carry, inputs, config)


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine_of(x: Tensor) -> float:
    found = run(x)[0].mean_cosine
    assert found is not None
    return found.value


def test_uniform_directions_are_told_from_their_few_rows() -> None:
    for n, d in ((20_000, 16), (300, 64), (60, 100)):
        result, _ = run(drawn(n, d) * torch.rand(n, 1).double().exp())
        assert result.entropy is not None
        assert result.distance is not None
        assert result.entropy.value == pytest.approx(result.entropy_uniform, abs=0.02)
        assert result.distance.value == pytest.approx(result.distance_uniform, abs=0.03)
        assert result.coding_rate is not None
        assert result.coding_rate.value == pytest.approx(result.coding_rate_uniform, rel=0.01)
        assert result.mean_cosine is not None
        assert result.mean_cosine.value == pytest.approx(0, abs=3 / math.sqrt(n * n * d / 2))
    assert run(drawn(20_000, 16))[0].entropy_uniform == pytest.approx(math.log(16), abs=1e-3)
    assert run(drawn(20_000, 16))[0].distance_uniform < 0.03


def test_half_of_the_directions() -> None:
    x = drawn(50_000, 32)
    x[:, 16:] = 0
    result, _ = run(x, groups=5)
    assert result.distance is not None
    assert result.distance.value == pytest.approx(math.sqrt(2 - math.sqrt(2)), abs=2e-3)
    assert result.entropy is not None
    assert result.entropy.value == pytest.approx(math.log(16), abs=1e-3)


def test_one_direction() -> None:
    result, arrays = run(torch.rand(40, 1).double() @ torch.ones(1, 9).double())
    assert result.distance is not None
    assert result.entropy is not None
    assert result.distance.value == pytest.approx(math.sqrt(2), abs=1e-7)
    assert result.entropy.value == pytest.approx(0, abs=1e-12)
    assert result.mean_cosine is not None
    assert result.mean_cosine.value == pytest.approx(1)
    assert float(arrays["eigenvalue"].values[0]) == pytest.approx(1)


def test_numbers_are_those_of_numpy() -> None:
    x = drawn(90, 7, 3) + 0.7
    result, arrays = run(x)
    z = (x / x.norm(dim=1, keepdim=True)).numpy()
    values = np.linalg.eigvalsh(z.T @ z / 90)[::-1]
    np.testing.assert_allclose(arrays["eigenvalue"].values, values, rtol=1e-11)
    assert result.entropy is not None
    assert result.distance is not None
    assert result.entropy.value == pytest.approx(-(values * np.log(values)).sum(), rel=1e-12)
    mean, spread = z.mean(0), np.cov(z.T, bias=True)
    root = np.sqrt(np.linalg.eigvalsh(spread)).sum()
    expected = math.sqrt(mean @ mean + 1 + np.trace(spread) - 2 / math.sqrt(7) * root)
    assert result.distance.value == pytest.approx(expected, rel=1e-10)
    assert result.coding_rate is not None
    rate = np.linalg.slogdet(np.eye(7) + 7 / 0.5**2 * z.T @ z / 90)[1] / 2
    assert result.coding_rate.value == pytest.approx(rate, rel=1e-12)
    cosines = z @ z.T
    assert result.mean_cosine is not None
    assert result.mean_cosine.value == pytest.approx((cosines.sum() - 90) / (90 * 89), rel=1e-10)


def test_the_mean_cosine_has_an_interval_by_leaving_samples_out() -> None:
    """By numpy, from the cosines themselves; near 1 the interval ends below."""
    x = drawn(90, 4, 3) * torch.tensor([3.0, 1, 1, 1]) + torch.tensor([2.0, 0, 0, 0])
    sample = torch.arange(30).repeat_interleave(3)
    found = run(x, sample, groups=6)[0].mean_cosine
    z = (x / x.norm(dim=1, keepdim=True)).numpy()

    def mean(rows: np.ndarray) -> float:
        c = z[rows] @ z[rows].T
        return float((c.sum() - len(c)) / (len(c) * (len(c) - 1)))

    left = np.array([mean((spread(sample, 6) != g).numpy()) for g in range(6)])
    odds = np.arctanh(left)
    reach = 2.570582 * math.sqrt(5 / 6 * ((odds - odds.mean()) ** 2).sum())  # t of 5 degrees
    assert found is not None
    assert found.value == pytest.approx(mean(np.ones(90, bool)), rel=1e-10)
    for end, sign in ((found.low, -1), (found.high, 1)):
        assert end == pytest.approx(math.tanh(math.atanh(found.value) + sign * reach), rel=1e-5)


def test_rows_without_a_direction_are_counted() -> None:
    x = drawn(60, 5)
    with_zeros = torch.cat([x, torch.zeros(7, 5).double()])
    result, _ = run(with_zeros)
    assert (result.n_zero, result.n_rows) == (7, 67)
    plain = run(x)[0]
    assert result.entropy is not None
    assert plain.entropy is not None
    assert result.entropy.value == pytest.approx(plain.entropy.value, rel=1e-12)


def test_lengths_do_not_matter() -> None:
    x = drawn(60, 5)
    scales = torch.logspace(-200, 200, 60, dtype=torch.float64)[:, None]
    assert cosine_of(x * scales) == pytest.approx(cosine_of(x), rel=1e-9)


def test_intervals_cover_dependent_rows() -> None:
    """Samples of sixteen rows that share their direction but for a little noise."""
    scales = torch.tensor([3.0, 1.5, 1.0, 0.5], dtype=torch.float64)
    truth = run(drawn(60_000, 4, 99) * scales, groups=5)[0].entropy
    assert truth is not None
    hits = []
    for seed in range(80):
        rows = (drawn(150, 4, seed) * scales).repeat_interleave(16, 0) + 0.05 * drawn(2400, 4, 1000 + seed)
        found = run(rows, torch.arange(150).repeat_interleave(16))[0].entropy
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth.value <= found.high)
    assert 0.87 <= np.mean(hits) <= 1

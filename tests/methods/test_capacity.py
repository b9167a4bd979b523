"""geometry.capacity: uniform directions, the published formula there and back, and rows that are not near-orthogonal."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import capacity
from tasks.numerics import packing


def run(
    x: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[capacity.Result, dict[str, np.ndarray]]:
    config, index = capacity.Config.model_validate(options), torch.arange(len(x))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    capacity.check(inputs, config)
    block = Block({"x": x}, index if sample is None else sample, index, index)
    result, arrays = capacity.solve(block, inputs, config)
    return result, {name: array.values.numpy() for name, array in arrays.items()}


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [64, 768, 4096])
def test_there_and_back(width: int) -> None:
    for deviation in (0.01, 0.05, 0.0999, 0.3):
        k = packing.directions(deviation, width)
        assert packing.deviation(k, width) == pytest.approx(deviation, rel=1e-12)
        published = (width * np.exp((deviation**2 * width**0.97197234 / 0.45809143) ** (1 / 1.44738666))) ** (
            1 / 1.0668005
        )
        assert k == pytest.approx(published, rel=1e-9)
        assert packing.directions(deviation * 1.1, width) > k
    assert packing.deviation(2, width) == 0
    assert packing.directions(1.0, 10**9) == math.inf


def test_uniform_directions_give_their_null() -> None:
    x = drawn(1500, 600) * torch.rand(1500, 1).double().exp()
    result, arrays = run(x)
    assert result.deviation is not None
    assert result.deviation.low is not None
    assert result.deviation.high is not None
    assert result.deviation.value == pytest.approx(1 / math.sqrt(600), rel=0.01)
    assert result.deviation_uniform == pytest.approx(1 / math.sqrt(600))
    assert result.mean_cosine is not None
    assert result.mean_cosine.value == pytest.approx(0, abs=1e-3)
    assert result.share_beyond == pytest.approx(0.0455, abs=0.003)
    assert result.capacity is not None
    assert result.capacity_uniform is not None
    assert result.capacity.low is not None
    assert result.capacity.high is not None
    assert result.capacity.low < result.capacity.value < result.capacity.high
    assert result.capacity.value == pytest.approx(result.capacity_uniform, rel=0.1)
    assert arrays["count"].sum() == 1500 * 1499 // 2


def test_numbers_are_those_of_all_pairs() -> None:
    x = drawn(40, 9, 3) + 0.4
    z = (x / x.norm(dim=1, keepdim=True)).numpy()
    cosines = np.array([z[i] @ z[j] for i in range(40) for j in range(i)])
    result, arrays = run(x, bins=50, reach=1.5)
    assert result.mean_cosine is not None
    assert result.deviation is not None
    assert result.boundary is not None
    assert result.mean_cosine.value == pytest.approx(cosines.mean(), rel=1e-12)
    assert result.deviation.value == pytest.approx(cosines.std(), rel=1e-12)
    assert result.boundary.value == pytest.approx(cosines.mean() + 1.5 * cosines.std(), rel=1e-12)
    np.testing.assert_array_equal(arrays["count"], np.histogram(cosines, 50, (-1, 1))[0])
    np.testing.assert_allclose(arrays["cosine"], np.linspace(-0.98, 0.98, 50), atol=1e-12)
    assert result.share_beyond == (np.abs(cosines) > result.boundary.value).mean()


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(70, 9)
    expected = run(x)
    monkeypatch.setattr(capacity, "BLOCK", 16)
    found = run(x)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1]["count"], expected[1]["count"])


def test_rows_that_are_not_near_orthogonal_have_no_capacity() -> None:
    result, _ = run(drawn(100, 600) + 1)
    assert result.boundary is not None
    assert result.boundary.value > 0.4
    assert result.capacity is None
    assert any("not near-orthogonal" in note for note in result.caveats)
    orthogonal, _ = run(torch.eye(30).double())
    assert orthogonal.boundary is not None
    assert orthogonal.boundary.value == 0
    assert orthogonal.capacity is None


def test_zeros_and_equal_rows_are_counted() -> None:
    x = torch.cat([drawn(30, 500), torch.zeros(4, 500).double(), drawn(30, 500)[:6] * 3])
    result, _ = run(x)
    assert (result.n_rows, result.n_zero, result.n_parallel_pairs) == (40, 4, 6)
    with pytest.raises(MethodError, match="found 3 good rows with a direction"):
        run(torch.cat([drawn(3, 5), torch.zeros(9, 5).double()]))
    with pytest.raises(MethodError, match="found 2 rows"):
        run(drawn(2, 5))


def test_intervals_cover_dependent_rows() -> None:
    """Samples of four rows that are nearly one direction."""
    scales = torch.tensor([3.0, 2, 1, 1, 1, 0.5])
    hits, sample = [], torch.arange(240) // 4
    truth = capacity._cosines(capacity.distances.directions(drawn(40_000, 6, 999) * scales)[0]).deviation
    share = 3 / 239  # of pairs that are of one sample, with cosines near 1
    truth = math.sqrt((1 - share) * truth**2 + share - share**2)
    for seed in range(150):
        rows = (drawn(60, 6, seed) * scales).repeat_interleave(4, 0) + 1e-3 * drawn(240, 6, 1000 + seed)
        found = run(rows, sample, bins=2)[0].deviation
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(hits) <= 1


def test_two_runs_are_equal() -> None:
    assert run(drawn(60, 30))[0] == run(drawn(60, 30))[0]

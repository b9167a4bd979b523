"""geometry.persistent_dimension: cubes of known dimension, texts that do not depend on others, and texts that cannot be measured."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import persistent_dimension


def run(
    x: Tensor, sample: Tensor, **options: Any
) -> tuple[persistent_dimension.Result, dict[str, np.ndarray]]:
    config = persistent_dimension.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    persistent_dimension.check(inputs, config)
    index = torch.arange(len(x))
    result, arrays = persistent_dimension.solve(Block({"x": x}, sample, index, index), inputs, config)
    return result, {name: array.values.numpy() for name, array in arrays.items()}


def cube(d: int, n: int, seed: int, width: int = 20) -> Tensor:
    """Points of a cube of dimension d, turned into more features."""
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, d, dtype=torch.float64, generator=rng))[0]
    return torch.rand(n, d, dtype=torch.float64, generator=rng) @ basis.T


def texts(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(part) for part in parts])
    return torch.cat(parts), torch.arange(len(parts)).repeat_interleave(lengths)


def test_cubes_are_in_order_and_near_their_dimension() -> None:
    found = {}
    for d, tolerance in ((2, 0.3), (5, 1.0), (10, 3.0)):
        result, arrays = run(*texts([cube(d, 400, seed) for seed in range(4)]))
        assert result.mean is not None
        assert result.mean.low is not None
        assert result.mean.high is not None
        assert result.mean.value == pytest.approx(d, abs=tolerance)
        assert result.mean.low < result.mean.value < result.mean.high
        assert result.mean.value == pytest.approx(arrays["dimension"].mean())
        assert result.rerun_deviation is not None
        assert 0 < result.rerun_deviation < tolerance
        assert (arrays["deviation"] > 0).all()
        found[d] = result.mean.value
    assert found[2] < found[5] < found[10]


def test_a_text_does_not_depend_on_others() -> None:
    parts = [cube(3, 90 + 10 * k, k) for k in range(3)]
    x, sample = texts(parts)
    _, together = run(x, sample)
    for k in range(3):
        _, alone = run(x[sample == k], sample[sample == k])
        for name in together:
            assert alone[name][0] == together[name][k]
    again = run(x, sample)
    assert again[0] == run(x, sample)[0]
    assert run(x, sample, seed=1)[1]["dimension"].tolist() != together["dimension"].tolist()


def test_what_cannot_be_measured_is_counted() -> None:
    equal = cube(3, 1, 0).expand(100, -1)
    x, sample = texts(
        [cube(3, 79, 1), cube(3, 120, 2), equal, torch.cat([cube(3, 100, 3), cube(3, 100, 3)[:7]])]
    )
    result, arrays = run(x, sample)
    assert (result.n_samples, result.n_short, result.n_undetermined, result.n_measured) == (4, 1, 1, 2)
    assert result.n_duplicates == 99 + 7
    assert arrays["sample"].tolist() == [1, 3]
    assert arrays["rows"].tolist() == [120, 107]
    assert np.isfinite(arrays["dimension"]).all()
    none, arrays = run(cube(3, 60, 0), torch.arange(60) // 6)
    assert none.mean is None
    assert none.mean_gaussian is None
    assert none.pooled is not None
    assert len(arrays["sample"]) == 0
    empty, _ = run(torch.ones(3, 2).double(), torch.zeros(3, dtype=torch.int64))
    assert (empty.pooled, empty.n_short) == (None, 1)


def test_points_of_all_features_stand_beside() -> None:
    """Few points in many dimensions look like points of fewer, and as the Gaussian beside does."""
    rows = torch.randn(3200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result, _ = run(rows, torch.arange(3200) // 400)
    assert result.mean is not None
    assert result.mean_gaussian is not None
    assert result.gaussian_deviation is not None
    assert result.mean.value < 50
    assert result.mean.value == pytest.approx(result.mean_gaussian, rel=0.1)
    assert 0 < result.gaussian_deviation < 0.3 * result.mean_gaussian


def test_long_texts_are_cut_by_the_seed() -> None:
    x, sample = texts([cube(2, 700, 0)])
    result, arrays = run(x, sample, longest=200)
    assert arrays["rows"].tolist() == [700]
    assert result.mean is not None
    assert result.mean.value == pytest.approx(2, abs=0.5)
    assert result.mean.low is None


def test_options_without_two_sizes_are_refused() -> None:
    with pytest.raises(MethodError, match="less than two sizes"):
        run(cube(2, 90, 0), torch.zeros(90, dtype=torch.int64), least_rows=40)

"""geometry.spanning_tree: uniform directions, clusters and collapse, against SciPy's tree."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import spanning_tree


def run(x: Tensor, sample: Tensor | None = None, **options: Any) -> tuple[spanning_tree.Result, np.ndarray]:
    config, index = spanning_tree.Config.model_validate(options), torch.arange(len(x))
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    spanning_tree.check(inputs, config)
    block = Block({"x": x}, index if sample is None else sample, index, index)
    result, arrays = spanning_tree.solve(block, inputs, config)
    return result, arrays["edge"].values.numpy()


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_uniform_directions_are_as_long_as_uniform_ones() -> None:
    x = drawn(300, 6) * torch.rand(300, 1).double().exp()
    result, edges = run(x)
    z = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert result.length == pytest.approx(minimum_spanning_tree(cdist(z, z)).sum(), rel=1e-12)
    assert edges.sum() == pytest.approx(result.length)
    assert len(edges) == 299
    assert (np.diff(edges) >= 0).all()
    assert result.relative_length is not None
    assert result.relative_length.low is not None
    assert result.relative_length.high is not None
    assert result.relative_length.low < 1 < result.relative_length.high
    assert result.relative_length.value == pytest.approx(1, abs=4 * result.uniform_deviation)
    assert result.dimension is not None
    assert result.dimension_uniform is not None
    assert result.dimension.value == pytest.approx(5, abs=1)
    assert result.dimension_uniform == pytest.approx(5, abs=0.8)


def test_points_of_a_circle() -> None:
    """Evenly around: the tree leaves one of n equal chords out, and its length hardly grows with points."""
    angle = torch.arange(500).double() * (2 * math.pi / 500)
    result, edges = run(torch.stack([angle.cos(), angle.sin()], dim=1) * 7)
    np.testing.assert_allclose(edges, 2 * math.sin(math.pi / 500), rtol=1e-11)
    assert result.dimension is not None
    assert result.dimension.value == pytest.approx(1, abs=0.1)


def test_collapse_and_clusters_are_short() -> None:
    few = drawn(400, 16)
    few[:, 3:] *= 1e-3
    clusters = drawn(8, 16).repeat(50, 1) + 0.05 * drawn(400, 16, 1)
    collapsed, clustered = run(few)[0], run(clusters)[0]
    for result in (collapsed, clustered):
        assert result.relative_length is not None
        assert result.relative_length.high is not None
        assert result.relative_length.high < 0.5
    assert collapsed.dimension is not None
    assert collapsed.dimension.value == pytest.approx(2, abs=0.4)


def test_zeros_and_duplicates_are_counted() -> None:
    x = torch.cat([drawn(60, 5), torch.zeros(7, 5).double(), drawn(60, 5)[:9] * 2])
    result, edges = run(x)
    assert (result.n_zero, result.n_duplicates, result.n_rows) == (7, 9, 76)
    assert (edges == 0).sum() == 9
    equal, _ = run(torch.ones(40, 3).double())
    assert equal.n_duplicates == 39
    assert equal.dimension is None
    assert equal.length == 0
    assert "most rows are equal" in equal.caveats[-1]


def test_two_runs_are_equal_and_seeds_differ() -> None:
    x = drawn(80, 5)
    assert run(x)[0] == run(x)[0]
    assert run(x)[0].uniform_length != run(x, seed=1)[0].uniform_length


def test_intervals_know_samples() -> None:
    """Rows of one sample that are nearly equal: as many halves, wider bounds."""
    alike = drawn(40, 5).repeat_interleave(6, 0) + 0.3 * drawn(240, 5, 1)
    sample = torch.arange(40).repeat_interleave(6)
    wide, narrow = run(alike, sample)[0].relative_length, run(alike)[0].relative_length
    assert wide is not None
    assert narrow is not None
    assert wide.high is not None
    assert narrow.high is not None
    assert wide.high != narrow.high
    one = run(alike, torch.zeros(240, dtype=torch.int64))[0]
    assert one.relative_length is not None
    assert one.relative_length.low is None
    assert "no interval" in one.caveats[0]


def test_too_few_are_refused() -> None:
    with pytest.raises(MethodError, match="found 9 rows"):
        run(drawn(9, 5))
    with pytest.raises(MethodError, match="found 10 good rows with a direction"):
        run(torch.cat([drawn(10, 5), torch.zeros(30, 5).double()]))
    with pytest.raises(MethodError, match="one feature"):
        run(drawn(60, 1))

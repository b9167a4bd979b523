"""Spanning trees against plain loops and SciPy, and the dimension of cubes."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree

from tasks.numerics import distances, spanning_tree
from tasks.numerics.spanning_tree import Plan


def by_loop(distance: np.ndarray) -> list[float]:
    """Kruskal's algorithm: shortest edges first, those that close a circle are left out."""
    n = len(distance)
    part = list(range(n))
    found = []
    for length, i, j in sorted((distance[a, b], a, b) for a in range(n) for b in range(a)):
        if part[i] != part[j]:
            old, new = part[i], part[j]
            part = [new if p == old else p for p in part]
            found.append(float(length))
    return found


def growth(distance: torch.Tensor, plan: Plan, seed: int) -> spanning_tree.Growth:
    return spanning_tree.growth(spanning_tree.slopes(distance, plan, np.random.default_rng(seed)), plan.power)


@pytest.mark.parametrize("levels", [0, 2, 5])
def test_edges_are_those_of_kruskal(levels: int) -> None:
    """Levels: integer coordinates, with many ties and equal points."""
    rng = np.random.default_rng(levels)
    x = rng.integers(0, levels, (30, 3)).astype(float) if levels else rng.standard_normal((30, 3))
    distance = distances.pairwise(torch.from_numpy(x))
    found = np.sort(spanning_tree.edges(distance).numpy())
    np.testing.assert_allclose(found, np.sort(by_loop(distance.numpy())), rtol=1e-14)
    if not levels:
        assert found.sum() == pytest.approx(minimum_spanning_tree(distance.numpy()).sum(), rel=1e-12)
    else:
        assert (found == 0).sum() == distances.duplicates(distance) == 30 - len(np.unique(x, axis=0))


def test_a_batch_is_its_trees() -> None:
    x = torch.randn(4, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each = torch.stack([distances.pairwise(points) for points in x])
    found = spanning_tree.edges(each.reshape(2, 2, 12, 12))
    assert found.shape == (2, 2, 11)
    for k in range(4):
        torch.testing.assert_close(found[k // 2, k % 2], spanning_tree.edges(each[k]), rtol=0, atol=0)
    assert spanning_tree.edges(torch.zeros(1, 1).double()).shape == (0,)
    assert spanning_tree.edges(torch.zeros(0, 0).double()).shape == (0,)


def test_equal_spaces_on_a_line() -> None:
    distance = distances.pairwise(torch.arange(50.0)[:, None] * 3)
    assert float(spanning_tree.total(distance, 2.0)) == pytest.approx(49 * 9)


def test_distances_of_huge_and_tiny_numbers() -> None:
    x = torch.tensor([[0.0, 3.0], [4.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    for scale in (1e-200, 1.0, 1e200):
        found = distances.pairwise(x * scale)
        assert float(found[0, 1]) == pytest.approx(5 * scale, rel=1e-15)
        assert float(found[1, 2]) == 0
        assert torch.equal(found, found.T)
        assert distances.duplicates(found) == 1
        assert distances.median(found) == pytest.approx(5 * scale)
    assert math.isnan(distances.median(torch.zeros(2, 2).double()))


def test_distances_are_those_of_differences_for_rows_that_are_near() -> None:
    """A far common offset, and pairs from one tenth down to rounding apart."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((120, 9)) + 1e6
    x = np.concatenate([base, base[:60] + np.logspace(-1, -9, 60)[:, None], base[:5]])
    found = distances.pairwise(torch.from_numpy(x)).numpy()
    expected = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=3e-10)  # a row at 1e6 is rounded by 1e-10
    assert distances.duplicates(torch.from_numpy(found)) == 5 + int((x[120:180] == base[:60]).all(1).sum())


def test_directions_leave_out_zeros() -> None:
    found, kept = distances.directions(
        torch.tensor([[0.0, 0.0], [3e-200, 4e-200], [0.0, -1e300]], dtype=torch.float64)
    )
    assert kept.tolist() == [1, 2]
    torch.testing.assert_close(
        found, torch.tensor([[0.6, 0.8], [0.0, -1.0]], dtype=torch.float64), rtol=1e-15, atol=0
    )


def test_sizes_are_those_of_the_reference() -> None:
    assert spanning_tree.steps(40, 80, 7) == (40, 45, 50, 55, 60, 65, 70)
    assert spanning_tree.steps(40, 500, 7) == tuple(range(40, 435, 65))


def test_the_slope_is_that_of_a_plain_loop() -> None:
    """The same sub-samples, one by one, with trees by Kruskal and numpy's line."""
    x = np.random.default_rng(1).standard_normal((60, 4))
    plan, distance = Plan((10, 18, 40), 3, 2, 2, 1.5), distances.pairwise(torch.from_numpy(x))
    found = growth(distance, plan, 5)
    rng, lengths = np.random.default_rng(5), np.empty((2, 3))
    for k, size in enumerate(plan.sizes):
        draws = 2 if size >= 30 else 3
        for rerun in range(2):
            chosen = [rng.permutation(60)[:size] for _ in range(draws)]
            sums = [sum(edge**1.5 for edge in by_loop(distance.numpy()[np.ix_(c, c)])) for c in chosen]
            lengths[rerun, k] = np.median(sums)
    slopes = [np.polyfit(np.log(plan.sizes), np.log(row), 1)[0] for row in lengths]
    assert found.dimension == pytest.approx(1.5 / (1 - np.mean(slopes)), rel=1e-9)
    expected = 1.5 / (1 - np.mean(slopes)) ** 2 * np.std(slopes, ddof=1)
    assert found.deviation == pytest.approx(expected, rel=1e-7)


def test_cubes_have_their_dimension() -> None:
    for d, tolerance in ((1, 0.05), (2, 0.15), (5, 0.7), (10, 2.5)):
        x = torch.rand(1000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
        plan = Plan(spanning_tree.steps(50, 1000, 7), 5, 3, 3, 1.0 if d > 1 else 0.5)
        found = growth(distances.pairwise(x), plan, 0)
        assert found.dimension == pytest.approx(d, abs=tolerance)


def test_points_without_any_distance_have_no_dimension() -> None:
    found = growth(torch.zeros(20, 20).double(), Plan((5, 9), 2, 2, 2, 1.0), 0)
    assert math.isnan(found.dimension)

"""The steepest pairs: against all pairs by differences, in blocks, with ties, duplicates and equal numbers."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tasks.numerics import steepest as search
from tasks.numerics.steepest import Steepest


def found(x: np.ndarray, a: np.ndarray, edges: tuple[int, ...] = ()) -> Steepest:
    rows, number, index = torch.from_numpy(x), torch.from_numpy(a), torch.arange(len(x))
    bounds, pieces = [0, *edges, len(x)], []
    for low, high in pairwise(bounds):
        piece = search.none_yet(high - low)
        for c, d in pairwise(bounds):
            piece = search.steepest(
                piece, rows[low:high], index[low:high], number[low:high], rows[c:d], index[c:d], number[c:d]
            )
        pieces.append(piece)
    return Steepest(
        *(torch.cat([getattr(p, name) for p in pieces]) for name in ("slope", "distance", "index"))
    )


def by_differences(x: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wide = x.astype(np.float64)
    distance = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(-1))
    change = np.abs(a[:, None] - a[None])
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(change > 0, change / distance, 0)
    index = slope.argmax(1)
    rows = np.arange(len(x))
    none = slope.max(1) == 0
    return slope.max(1), np.where(none, np.inf, distance[rows, index]), np.where(none, -1, index)


def assert_exact(x: np.ndarray, a: np.ndarray, edges: tuple[int, ...] = ()) -> None:
    answer, (slope, distance, index) = found(x, a, edges), by_differences(x, a)
    np.testing.assert_allclose(answer.slope, slope, rtol=1e-13)
    np.testing.assert_allclose(answer.distance, distance, rtol=1e-13)
    np.testing.assert_array_equal(answer.index, index)


@pytest.mark.parametrize("edges", [(), (50,), (3, 3, 120)])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_it_equals_all_pairs(edges: tuple[int, ...], scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    x = ((rng.standard_normal((200, 12)) + offset) * scale).astype(np.float32)
    assert_exact(x, rng.standard_normal(200) * 3 + 1e6, edges)


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, a = rng.standard_normal((150, 5)).astype(np.float32), rng.standard_normal(150)
    monkeypatch.setattr(search, "COLUMNS", 7)
    monkeypatch.setattr(search, "TRIED", 1)
    assert_exact(x, a, (60,))


def test_near_duplicates_that_products_cannot_tell() -> None:
    """Distances far below the rounding of products: all candidates must be computed again."""
    rng = np.random.default_rng(2)
    x = np.repeat(rng.standard_normal((3, 20)) * 100, 40, axis=0) + rng.standard_normal((120, 20)) * 1e-5
    assert_exact(x, rng.integers(0, 3, 120).astype(float), (33,))


def test_ties_go_to_the_least_index_and_equal_numbers_do_not_count() -> None:
    x = np.arange(12, dtype=np.float32)[:, None] % 4
    assert_exact(x, np.array([0.0, 1, 0, 1] * 3), (5,))
    assert_exact(x, np.ones(12))
    assert (found(x, np.ones(12)).index == -1).all()


def test_contradictions_are_endless() -> None:
    x = np.zeros((4, 3), dtype=np.float32)
    x[2:] = 5
    answer = found(x, np.array([1.0, 2.0, 3.0, 3.0]))
    assert answer.slope.isinf().tolist() == [True, True, False, False]
    assert answer.distance[:2].tolist() == [0, 0]
    assert answer.index.tolist() == [1, 0, 0, 0]

"""Persistence of known shapes, against the plain reduction of the whole boundary matrix; bottleneck against all pairings."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from tasks.numerics import distances, persistence


def rips(x: np.ndarray) -> persistence.Diagrams:
    return persistence.rips(distances.pairwise(torch.from_numpy(x)))


def by_reduction(x: np.ndarray) -> list[list[tuple[float, float]]]:
    """All simplices up to triangles, columns from left to right, each added to until its lowest one is its own."""
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    simplices = [s for size in (1, 2, 3) for s in combinations(range(len(x)), size)]
    value = {s: max((d[a, b] for a, b in combinations(s, 2)), default=0.0) for s in simplices}
    simplices.sort(key=lambda s: (value[s], len(s), s))
    number = {s: k for k, s in enumerate(simplices)}
    lowest: dict[int, set[int]] = {}
    found: list[list[tuple[float, float]]] = [[], []]
    for s in simplices:
        column = {number[f] for f in combinations(s, len(s) - 1)} if len(s) > 1 else set()
        while column and max(column) in lowest:
            column = column ^ lowest[max(column)]
        if column:
            lowest[max(column)] = column
            birth = simplices[max(column)]
            if value[s] > value[birth]:
                found[len(birth) - 1].append((value[birth], value[s]))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_random_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((12, 2 + seed % 2)) if seed < 4 else rng.integers(0, 4, (12, 2)).astype(float)
    found, expected = rips(x), by_reduction(x)
    np.testing.assert_allclose(found.parts, sorted(expected[0]), rtol=1e-9)
    np.testing.assert_allclose(found.loops, np.array(sorted(expected[1])).reshape(-1, 2), rtol=1e-9)


@pytest.mark.parametrize("n", [4, 5, 12, 31, 60])
def test_a_circle_of_points_has_one_loop(n: int) -> None:
    """Born at the chord of one step, filled at the first chord that spans a third."""
    angle = np.arange(n) * 2 * math.pi / n
    found = rips(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    ends = [2 * math.sin(math.pi / n), 2 * math.sin(math.pi * math.ceil(n / 3) / n)]
    long = found.loops[found.loops[:, 1] - found.loops[:, 0] > 1e-9]  # equal chords differ by rounding
    np.testing.assert_allclose(long, [ends], rtol=1e-9)
    np.testing.assert_allclose(found.parts[:, 1], ends[0], rtol=1e-9)


def test_an_octahedron_has_no_loop_and_two_circles_have_two() -> None:
    assert len(rips(np.concatenate([np.eye(3), -np.eye(3)])).loops) == 0
    angle = np.arange(20) * 2 * math.pi / 20
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    loops = rips(np.concatenate([circle, circle + np.array([5, 0])])).loops
    assert ((loops[:, 1] - loops[:, 0]) > 1).sum() == 2


def test_landmarks_cover_all_points() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((80, 2)))
    distance = distances.pairwise(x)
    found = persistence.landmarks(distance, 12)
    assert len(set(found.tolist())) == 12
    radius = float(distance[found].min(0).values.max())
    among = distances.part(distance, found) + 1e9 * torch.eye(12)
    assert radius <= float(among.min()) + 1e-12  # no landmark was nearer than what was left uncovered
    assert persistence.landmarks(distance, 80).tolist() == list(range(80))


def test_equal_and_few_points() -> None:
    assert len(rips(np.ones((6, 2))).parts) == 0
    assert len(rips(np.ones((6, 2))).loops) == 0
    for n in (0, 1, 2, 3):
        found = rips(np.eye(3)[:n])
        assert (len(found.parts), len(found.loops)) == (max(0, n - 1), 0)


def by_pairings(a: np.ndarray, b: np.ndarray) -> float:
    """Every way to pair features and diagonal points."""
    alone_a, alone_b = (a[:, 1] - a[:, 0]) / 2, (b[:, 1] - b[:, 0]) / 2
    best = math.inf
    for order in permutations(
        range(len(a) + len(b))
    ):  # row k of a, or a diagonal point, takes column order[k]
        worst = 0.0
        for row, column in enumerate(order):
            if row < len(a) and column < len(b):
                worst = max(worst, float(np.abs(a[row] - b[column]).max()))
            elif row < len(a):
                worst = max(worst, float(alone_a[row]))
            elif column < len(b):
                worst = max(worst, float(alone_b[column]))
        best = min(best, worst)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_bottleneck_is_the_best_pairing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.sort(rng.random((n, 2)), axis=1) for n in ((3, 4), (2, 5), (1, 1))[seed % 3])
    assert persistence.bottleneck(a, b) == pytest.approx(by_pairings(a, b), rel=1e-12)
    assert persistence.bottleneck(b, a) == persistence.bottleneck(a, b)


def test_bottleneck_of_known_diagrams() -> None:
    none, one = np.zeros((0, 2)), np.array([[0.0, 2.0]])
    assert persistence.bottleneck(none, none) == 0
    assert persistence.bottleneck(one, none) == 1
    assert persistence.bottleneck(one, one) == 0
    assert persistence.bottleneck(one, np.array([[0.1, 2.5], [7.0, 7.2]])) == pytest.approx(0.5)

"""The area under the overlap of regions beside thresholds one by one, with and without ties; regions beside a flood fill."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tasks.numerics import region_overlap


def flood(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Sets of pixels that meet at sides or corners, image by image."""
    left = {tuple(int(i) for i in at) for at in np.argwhere(mask)}
    found = []
    while left:
        todo, region = [left.pop()], set()
        while todo:
            n, r, c = todo.pop()
            region.add((n, r, c))
            near = {(n, r + a, c + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            todo += near
        found.append(region)
    return found


def plain(scores: np.ndarray, mask: np.ndarray, limit: float) -> float:
    """Threshold by threshold, region by region; the last trapezium is cut at the limit."""
    parts = flood(mask)
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores.ravel().tolist()), reverse=True):
        high = scores >= threshold
        overlap = sum(sum(high[at] for at in part) / len(part) for part in parts) / len(parts)
        points.append((float(high[~mask].mean()), overlap))
    area = 0.0
    for (a, p), (b, q) in pairwise(points):
        end = min(b, limit)
        if end > a:
            q = p + (q - p) * (end - a) / (b - a)
            area += (end - a) * (p + q) / 2
    return area / limit


def drawn(seed: int, share: float, values: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 8, 9)) < share
    mask[0, 0, 0], mask[1, 4, 4] = True, False
    scores = rng.standard_normal(mask.shape) + mask
    return scores if values is None else np.round(scores * values / 4), mask


def aupro(scores: np.ndarray, mask: np.ndarray, limit: float = 0.3) -> float:
    region = region_overlap.regions(torch.from_numpy(mask))
    return region_overlap.aupro(torch.from_numpy(scores.astype(np.float64)), region, limit)


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.03, 0.2, 0.7]),
    st.sampled_from([None, 1, 2, 8]),
    st.sampled_from([0.05, 0.3, 1.0]),
)
def test_it_is_that_of_thresholds_one_by_one(
    seed: int, share: float, values: int | None, limit: float
) -> None:
    """Many pixels tie where values are few."""
    scores, mask = drawn(seed, share, values)
    assert aupro(scores, mask, limit) == pytest.approx(plain(scores, mask, limit), abs=1e-9)


def test_regions_are_those_of_a_flood_fill() -> None:
    _, mask = drawn(3, 0.3, None)
    found = region_overlap.regions(torch.from_numpy(mask)).numpy()
    theirs = {frozenset(region) for region in flood(mask)}
    ours = {frozenset(tuple(int(i) for i in at) for at in np.argwhere(found == k)) for k in range(1, found.max() + 1)}  # fmt: skip
    assert ours == theirs
    np.testing.assert_array_equal(found > 0, mask)


def test_a_region_of_one_pixel_each_is_the_area_under_the_roc_curve() -> None:
    rng = np.random.default_rng(5)
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, ::2, ::2] = True
    scores = np.round(2 * (rng.standard_normal(mask.shape) + mask))
    assert aupro(scores, mask, 1.0) == pytest.approx(roc_auc_score(mask.ravel(), scores.ravel()), abs=1e-12)


def test_a_small_region_counts_as_much_as_a_large_one() -> None:
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, :10, :10] = mask[0, 15, 15] = True
    found = np.where(mask, 1.0, 0.0)
    assert aupro(found, mask) == pytest.approx(1)
    found[0, 15, 15] = 0
    line = (0.5 + 0.65) / 2  # the small one comes with all normal pixels, on a straight line
    assert aupro(found, mask) == pytest.approx(line)


def test_ends() -> None:
    mask = np.zeros((2, 4, 4), dtype=bool)
    scores = np.arange(32.0).reshape(2, 4, 4)
    assert math.isnan(aupro(scores, mask))
    assert math.isnan(aupro(scores, ~mask))
    mask[1, 2:] = True
    assert aupro(scores, mask) == pytest.approx(1, abs=1e-12)
    assert aupro(-scores, mask) == 0
    assert aupro(np.zeros_like(scores), mask) == pytest.approx(0.15)

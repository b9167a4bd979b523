"""Overlap of neighbouring subspaces: frozen, random and planted ones."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from schemas.errors import MethodError
from tasks.methods.gradients import (
    dominant_overlap,
)
from tests.methods.training import low_rank, randn, solved


def test_a_frozen_subspace() -> None:
    rows, _ = low_rank(12, 30, 20, 4, 0.0)
    result = solved(dominant_overlap, rows, (30, 20), rank=4).result
    assert result.adjacent == pytest.approx(1, abs=1e-9)
    assert result.first_last == pytest.approx(1, abs=1e-9)
    assert result.frozen


@pytest.mark.parametrize("variant", ["dominant", "sampled"])
def test_random_gradients_have_the_overlap_of_chance(variant: str) -> None:
    result = solved(dominant_overlap, randn(200, 40 * 10), (40, 10), rank=6, variant=variant).result
    assert result.null == 0.15
    assert result.adjacent == pytest.approx(0.15, abs=3 * result.null_std / 200**0.5)
    assert not result.frozen


def test_the_spread_of_chance() -> None:
    overlaps = []
    for k in range(400):
        a, b = (torch.linalg.qr(randn(20, 3, seed=2 * k + s)).Q for s in (0, 1))
        overlaps.append(float((a.T @ b).square().sum() / 3))
    result = solved(dominant_overlap, randn(3, 20 * 8), (20, 8), rank=3).result
    assert np.std(overlaps) == pytest.approx(result.null_std, rel=0.12)
    assert np.mean(overlaps) == pytest.approx(result.null, rel=0.05)


def test_it_equals_scipy() -> None:
    rows = randn(2, 15 * 9)
    answer = solved(dominant_overlap, rows, (15, 9), rank=4)
    u = [np.linalg.svd(row.reshape(15, 9).numpy())[0][:, :4] for row in rows]
    expected = (np.cos(subspace_angles(*u)) ** 2).mean()
    assert answer.result.adjacent == pytest.approx(expected, rel=1e-10)


def test_sampling_prefers_large_singular_values() -> None:
    rows, basis = low_rank(300, 30, 20, 2, 0.05)
    u = torch.linalg.svd(rows[0].reshape(30, 20)).U[:, :2]
    assert float((u.T @ basis).square().sum()) > 1.95
    sampled = solved(dominant_overlap, rows, (30, 20), rank=2, variant="sampled").result.adjacent
    dominant = solved(dominant_overlap, rows, (30, 20), rank=2).result.adjacent
    assert 2 / 30 < sampled < dominant


def test_steps_of_lower_rank_have_their_own_chance() -> None:
    """Gradients of one sample have rank one: against eight directions, one divided by eight may be shared."""
    thin, wide = randn(200, 40, 1, seed=1) @ randn(200, 1, 30, seed=2), randn(200, 40, 30, seed=3)
    rows = torch.stack([thin, wide], 1).flatten(0, 1).flatten(1)
    result = solved(dominant_overlap, rows, (40, 30), rank=8).result
    assert (result.null, result.first_last_null) == pytest.approx((1 / 40, 1 / 40))
    assert solved(dominant_overlap, rows[1:], (40, 30), rank=8).result.first_last_null == pytest.approx(
        8 / 40
    )
    assert result.adjacent == pytest.approx(result.null, abs=4 * result.null_std / 399**0.5)
    overlaps = solved(dominant_overlap, rows, (40, 30), rank=8).arrays["adjacent"]
    assert float(overlaps.std()) == pytest.approx(result.null_std, rel=0.15)
    only = solved(dominant_overlap, thin.flatten(1), (40, 30), rank=8).result
    assert only.null == pytest.approx(1 / 40)
    assert not only.frozen


def test_steps_of_zeros_are_counted() -> None:
    rows = torch.cat([randn(2, 12), torch.zeros(1, 12).double()])
    result = solved(dominant_overlap, rows, (4, 3), rank=2).result
    assert result.empty_steps == 1
    with pytest.raises(MethodError, match="no steps"):
        solved(dominant_overlap, rows[:0], (4, 3))

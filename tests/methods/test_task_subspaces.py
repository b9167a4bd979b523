"""Subspaces of tasks in turn: orthogonal, equal and random ones."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.gradients import task_subspaces
from tests.methods.training import labelled, randn


def test_orthogonal_tasks_lose_nothing() -> None:
    frame = torch.linalg.qr(randn(60, 6)).Q
    groups = {"a": randn(30, 3) @ frame[:, :3].T, "b": randn(30, 3, seed=1) @ frame[:, 3:].T}
    result = labelled(task_subspaces, groups, rank=3).result
    assert result.energy == pytest.approx((1, 1))
    assert result.energy_lost == pytest.approx((0, 0), abs=1e-12)
    assert result.energy_kept == pytest.approx((1, 1))
    assert result.overlap == pytest.approx(0, abs=1e-12)
    assert result.history == 6


def test_a_task_in_the_history_keeps_nothing() -> None:
    frame = torch.linalg.qr(randn(60, 3)).Q
    groups = {name: randn(30, 3, seed=k) @ frame.T for k, name in enumerate("ab")}
    answer = labelled(task_subspaces, groups, rank=3)
    assert answer.result.energy_lost == pytest.approx((0, 1))
    assert answer.result.energy_kept == pytest.approx((1, 0), abs=1e-9)
    assert answer.result.overlap == pytest.approx(1)
    assert answer.result.history == 3
    history = answer.arrays["history"]
    np.testing.assert_allclose(history @ history.T, np.eye(3), atol=1e-12)


def test_random_tasks_have_the_numbers_of_chance() -> None:
    groups = {name: randn(400, 100, seed=k) for k, name in enumerate("abc")}
    result = labelled(task_subspaces, groups, rank=10).result
    assert result.lost_null == (0, 0.1, 0.2)
    assert result.energy_lost == pytest.approx(result.lost_null, abs=0.02)
    assert result.overlap == pytest.approx(0.1, abs=0.03)


def test_float32_rows_end_at_their_rounding() -> None:
    """Rows of two directions have no third: what float64 sees beside them is how float32 rounded."""
    frame = torch.linalg.qr(randn(60, 4)).Q
    groups = {
        "a": (randn(30, 2) @ frame[:, :2].T).float(),
        "b": (randn(30, 2, seed=1) @ frame[:, :2].T).float(),
        "c": (randn(30, 2, seed=2) @ frame[:, 2:].T).float(),
    }
    result = labelled(task_subspaces, groups, rank=8).result
    assert result.history == 4
    assert result.energy_kept == pytest.approx((1, 0, 1), abs=1e-6)
    assert result.overlap_null == pytest.approx(2 / 60)
    assert result.caveats == ("fewer directions than the 8 asked for: a, b, c",)


def test_tasks_of_other_sizes_have_their_own_chance() -> None:
    groups = {"a": randn(1, 50), "b": randn(400, 50, seed=1)}
    result = labelled(task_subspaces, groups, rank=5).result
    assert result.overlap_null == pytest.approx(1 / 50)
    assert result.caveats == ("fewer directions than the 5 asked for: a",)


def test_a_label_that_names_no_classes() -> None:
    with pytest.raises(MethodError, match="names no classes"):
        labelled(task_subspaces, {"a": randn(3, 4)}, label="size")

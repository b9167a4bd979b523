"""Active subspaces of functions whose directions are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.methods.gradients import active_subspace
from tests.methods.training import randn, solved


def gradients(n: int = 400) -> tuple[Tensor, Tensor]:
    """Of sin(a'x) at random points."""
    a, x = randn(20), randn(n, 20, seed=1)
    return torch.cos(x @ a)[:, None] * a, a


def test_a_ridge_function_has_one_direction() -> None:
    rows, a = gradients()
    answer = solved(active_subspace, rows)
    assert answer.result.dimension == 1
    assert answer.result.share == pytest.approx(1, abs=1e-12)
    direction = answer.arrays["direction"][0]
    assert float((direction @ (a / a.norm())).abs()) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(answer.arrays["activity"], answer.arrays["eigenvalue"][0] * direction**2)


def test_it_is_about_the_origin() -> None:
    rows = torch.tensor([1.0, 2, 0]).double().repeat(50, 1) + 1e-3 * randn(50, 3)
    answer = solved(active_subspace, rows)
    assert answer.result.dimension == 1
    assert answer.result.mean_gradient_share == pytest.approx(1, abs=1e-4)
    assert answer.arrays["eigenvalue"][0] == pytest.approx(5, rel=0.01)


def test_it_equals_lapack_and_finds_a_planted_gap() -> None:
    scale = torch.tensor([5.0, 4, 3, 0.1, 0.09, 0.08, 0.07]).double()
    rows = randn(3000, 7) * scale
    answer = solved(active_subspace, rows)
    values = np.linalg.eigvalsh(rows.T.numpy() @ rows.numpy() / 3000)[::-1]
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values, rtol=1e-10)
    assert answer.result.dimension == 3
    assert answer.result.gap_is_clear
    assert answer.result.share_null == pytest.approx(3 / 7)
    assert answer.result.angle_error < 0.01


def test_no_gradients() -> None:
    result = solved(active_subspace, torch.zeros(10, 4).double()).result
    assert result.dimension == 0
    assert result.share is None

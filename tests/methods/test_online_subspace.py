"""A subspace that follows gradients one by one."""

import pytest
import torch

from tasks.methods.gradients import online_subspace
from tests.methods.training import low_rank, randn, solved


def test_it_finds_the_leading_subspace() -> None:
    rows, _ = low_rank(80, 20, 30, 3, 0.02)
    turned = rows.reshape(80, 20, 30).mT.flatten(1)  # the subspace is that of columns
    result = solved(online_subspace, turned, (30, 20), rank=3, passes=8).result
    assert result.captured > 0.97 * result.captured_best
    assert result.captured > result.captured_first
    assert result.distance < 0.1
    assert result.captured_null == pytest.approx(3 / 20)


def test_the_slope_is_that_of_the_error() -> None:
    g, p = randn(5, 7), randn(7, 3, seed=1).requires_grad_()
    error = (g @ p @ p.T - g).square().sum() / 2
    regulariser = (p.T @ p - torch.eye(3)).square().sum() / 4
    (slope,) = torch.autograd.grad(error + 0.3 * regulariser, p)
    found = online_subspace._slope(g, p.detach(), 0.3)
    torch.testing.assert_close(found, slope)


def test_the_best_is_that_of_an_svd() -> None:
    rows = randn(40, 12 * 9)
    result = solved(online_subspace, rows, (12, 9), rank=2, passes=1).result
    units = (rows / rows.norm(dim=1, keepdim=True)).reshape(-1, 9)
    s = torch.linalg.svdvals(units).square()
    assert result.captured_best == pytest.approx(float(s[:2].sum() / s.sum()))

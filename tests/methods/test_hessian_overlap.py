"""Gradients in the leading eigenspace: planted shares, and the numbers of chance."""

from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.gradients import hessian_overlap
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.training import randn


def solved(rows: Tensor, basis: Tensor, **result: Any) -> Answer:
    width = basis.shape[1]
    known = {"n_parameters": width, "parameters": ["w"], "converged": True} | result
    inputs = Inputs(
        widths={"x": rows.shape[1]},
        n_rows=len(rows),
        n_samples=len(rows),
        artifacts={"hessian": {"eigenvector": basis}},
        results={"hessian": known},
    )
    hessian_overlap.check(inputs, hessian_overlap.Config())
    block = cases._block({"x": rows}, len(rows), False)
    return cases.run(Case(hessian_overlap, hessian_overlap.Config(), inputs, block))


def test_random_gradients_have_the_share_of_chance() -> None:
    basis = torch.linalg.qr(randn(1000, 10)).Q.T
    result = solved(randn(2000, 1000, seed=1), basis).result
    assert result.null == 0.01
    assert result.share == pytest.approx(0.01, rel=0.03)
    shares = solved(randn(2000, 1000, seed=2), basis).arrays["share"]
    assert float(shares.std()) == pytest.approx(result.null_std, rel=0.05)
    assert result.above_chance < 0.03


def test_a_quadratic_loss_with_a_planted_spectrum() -> None:
    """At a random point x the gradient of x' H x / 2 is H x: its share in the top space is known."""
    turn = torch.linalg.qr(randn(200, 200)).Q
    values = torch.cat([torch.full((5,), 10.0), torch.full((195,), 0.1)]).double()
    hessian = turn @ torch.diag(values) @ turn.T
    rows = randn(4000, 200, seed=3) @ hessian
    result = solved(rows, turn[:, :5].T.contiguous()).result
    planted = 5 * 100 / (5 * 100 + 195 * 0.01)
    assert result.energy_share == pytest.approx(planted, abs=1e-3)
    assert result.above_chance == 1


def test_zeros_are_counted_and_other_parameters_refused() -> None:
    basis = torch.eye(6).double()[:2]
    rows = torch.cat([torch.zeros(2, 6).double(), torch.eye(6).double()[:1]])
    result = solved(rows, basis, converged=False).result
    assert result.zero_rows == 2
    assert result.share == 1
    assert result.caveats
    with pytest.raises(MethodError, match="gradients have 5 entries"):
        solved(randn(3, 5), basis)

"""The dimension of trainings and their commutators, beside random walks."""

import pytest
import torch

from tasks.methods.gradients import execution_manifold
from tests.methods.training import randn, solved


def test_dimension_of_a_walk_and_of_a_line() -> None:
    walk = randn(100, 2500, seed=3).cumsum(0)
    result = solved(execution_manifold, walk, (50, 50)).result
    assert not result.lower_than_walk
    assert result.components_null_low <= result.components <= result.components_null_high
    assert result.three_share == pytest.approx(0.83, abs=0.03)
    assert result.commutator_share == pytest.approx(result.commutator_null, abs=0.02)
    line = torch.linspace(0, 9, 60).double()[:, None] * randn(1, 2500) + 0.01 * randn(60, 2500, seed=4)
    assert solved(execution_manifold, line, (50, 50)).result.lower_than_walk


def test_commutators_of_planted_updates() -> None:
    turn = torch.linalg.qr(randn(20, 20)).Q
    steps = torch.stack([turn @ torch.diag(randn(20, seed=k)) @ turn.T for k in range(30)]).flatten(1)
    commuting = torch.cat([torch.zeros(1, 400).double(), steps.cumsum(0)])
    size = solved(execution_manifold, commuting, (20, 20)).result.commutator_size
    assert size is None or size < 1e-12
    free = solved(execution_manifold, randn(30, 400, seed=9).cumsum(0), (20, 20)).result
    assert free.commutator_size > 0.1
    assert solved(execution_manifold, randn(30, 400).cumsum(0), (40, 10)).result.commutator_share is None

"""Trajectories: walks look like the null, directed ones do not."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.gradients import execution_manifold, trajectory
from tests.methods.training import randn, solved


def test_a_random_walk_is_not_called_low_dimensional() -> None:
    walk = randn(500, 5000, seed=1).cumsum(0)
    answer = solved(trajectory, walk)
    np.testing.assert_allclose(answer.arrays["share"][:3], [0.608, 0.152, 0.068], rtol=0.05)
    assert answer.result.first_share_null == pytest.approx(0.608, rel=0.01)
    assert answer.result.lissajous > 0.95
    assert not any(answer.result.exceeds_null[:1])
    assert answer.result.straightness == pytest.approx(answer.result.straightness_null, rel=0.2)
    assert answer.result.step_dimension == pytest.approx(5000 * 498 / (5000 + 498), rel=0.1)


def test_a_straight_path_exceeds_the_null() -> None:
    path = torch.linspace(0, 50, 200).double()[:, None] * randn(1, 300) + 0.1 * randn(200, 300, seed=2)
    result = solved(trajectory, path).result
    assert result.first_share > 0.99
    assert result.exceeds_null[0]
    assert result.straightness > 10 * result.straightness_null


def test_projections_are_those_of_an_svd() -> None:
    path = randn(30, 40).cumsum(0)
    answer = solved(trajectory, path, components=4)
    u, s, _ = torch.linalg.svd(path - path.mean(0), full_matrices=False)
    np.testing.assert_allclose(answer.arrays["projection"].abs(), (u * s)[:, :4].abs(), atol=1e-9)


def test_what_stands_still_has_no_shares() -> None:
    result = solved(trajectory, torch.ones(5, 7).double()).result
    assert result.first_share is None
    assert result.caveats
    with pytest.raises(MethodError, match="at least 3"):
        solved(trajectory, torch.ones(2, 7).double())


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

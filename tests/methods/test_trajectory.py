"""Trajectories: walks look like the null, directed ones do not."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.gradients import trajectory
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

"""Directions that are kept from changes: planted and random ones."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.gradients import protected_directions
from tests.methods.training import randn, solved


def test_planted_changes() -> None:
    weight = randn(20, 30)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    inside = weight + u[:, :5] @ randn(5, 30, seed=1)
    outside = weight + u[:, 15:] @ randn(5, 5, seed=2) @ vh[15:]
    rows = torch.stack([weight, inside, outside]).flatten(1)
    answer = solved(protected_directions, rows, (20, 30), importance=1.0, most=0.5)
    assert answer.result.protected == 10
    np.testing.assert_allclose(answer.arrays["free_share"][1:], [0, 1], atol=1e-12)
    assert answer.result.protected_energy == pytest.approx(float(s[:10].square().sum() / s.square().sum()))


def test_random_changes_have_the_share_of_chance() -> None:
    rows = torch.cat([randn(1, 60 * 80), randn(1, 60 * 80) + 3 * randn(1, 60 * 80, seed=1)])
    result = solved(protected_directions, rows, (60, 80), importance=0.0, least=0.25).result
    assert result.protected == 15
    assert result.free_share == pytest.approx(result.free_null, abs=0.03)
    assert solved(protected_directions, rows[:1], (60, 80)).result.caveats
    with pytest.raises(MethodError, match="exchange them"):
        solved(protected_directions, rows, (60, 80), least=0.9)

"""Energy in a core subspace: planted, random and growing ones."""

import pytest
import torch

from tasks.methods.gradients import (
    core_energy,
)
from tests.methods.training import low_rank, randn, solved


def test_planted_energy() -> None:
    rows, _ = low_rank(40, 50, 30, 3, 0.1)
    result = solved(core_energy, rows, (50, 30), rank=3).result
    planted = 30 * 3 / (30 * 3 + 0.01 * 30 * 50)
    assert result.common == pytest.approx(planted, abs=0.02)
    assert result.first == pytest.approx(result.common, abs=0.02)
    assert result.own >= result.common
    assert result.null == 0.06


def test_noise_has_the_energy_of_chance_in_a_fixed_core() -> None:
    result = solved(core_energy, randn(100, 60 * 20), (60, 20), rank=6).result
    assert result.first == pytest.approx(0.1, abs=0.01)
    assert result.own > 0.2  # the most that six dimensions hold is more than chance even for noise


def test_steps_of_lower_rank_have_their_own_chance() -> None:
    rows = (randn(300, 50, 1, seed=1) @ randn(300, 1, 20, seed=2)).flatten(1)
    result = solved(core_energy, rows, (50, 20), rank=8).result
    assert result.own == pytest.approx(1)
    assert (result.null, result.first_null, result.common_null) == (0.02, 0.02, 0.16)
    assert result.first == pytest.approx(result.first_null, abs=0.005)


def test_a_growing_core() -> None:
    rows, _ = low_rank(20, 30, 20, 2, 0.0)
    noise = randn(20, 600, seed=5)
    share = torch.linspace(0, 1, 20).double()[:, None]
    result = solved(core_energy, share * rows + (1 - share) * noise, (30, 20), rank=2).result
    assert result.slope > 0.3
    assert solved(core_energy, torch.zeros(3, 12).double(), (4, 3)).result.own is None

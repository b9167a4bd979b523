"""When the final subspace of a training shows."""

import pytest
import torch

from tasks.methods.gradients import (
    early_final,
)
from tests.methods.training import low_rank, randn, solved


def test_a_subspace_that_shows_early() -> None:
    steps, _ = low_rank(50, 30, 20, 2, 0.0)
    weights = randn(1, 600, seed=8) + torch.cat([torch.zeros(1, 600).double(), steps.cumsum(0)])
    result = solved(early_final, weights, (30, 20), rank=2).result
    assert result.early_overlap == pytest.approx(1, abs=1e-9)
    assert result.concentration == pytest.approx(1, abs=1e-9)
    assert result.effective_rank <= 2 + 1e-9
    assert result.step_found == 1
    assert result.concentration_null < 0.4


def test_a_subspace_that_turns() -> None:
    first, _ = low_rank(10, 40, 20, 2, 0.0, seed=1)
    second, _ = low_rank(10, 40, 20, 2, 0.0, seed=7)
    weights = torch.cat(
        [torch.zeros(1, 800).double(), first.cumsum(0), first.sum(0) + 100 * second.cumsum(0)]
    )
    result = solved(early_final, weights, (40, 20), rank=2, early=0.25).result
    assert result.early_overlap < 0.3
    assert result.step_found is not None
    assert result.step_found > 10


def test_updates_of_lower_rank_have_their_own_chance() -> None:
    early = [
        solved(early_final, rows, (30, 20), rank=8, early=0.4).result
        for rows in (
            torch.cat([torch.zeros(1, 600).double(), step, randn(1, 600, seed=k)])
            for k in range(60)
            for step in [(randn(30, 1, seed=1000 + k) @ randn(1, 20, seed=2000 + k)).flatten()[None]]
        )
    ]
    assert early[0].overlap_null == pytest.approx(1 / 30)
    mean = sum(result.early_overlap for result in early) / 60
    assert mean == pytest.approx(1 / 30, rel=0.2)


def test_nothing_moved() -> None:
    result = solved(early_final, torch.ones(4, 12).double(), (4, 3)).result
    assert result.concentration is None
    assert result.caveats

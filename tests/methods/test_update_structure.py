"""Sparsity and rank of updates, beside their entries in shuffled places."""

import pytest
import torch

from tasks.methods.gradients import (
    update_structure,
)
from tests.methods.training import low_rank, randn, solved


def test_planted_sparsity_rank_and_overlap() -> None:
    mask = torch.zeros(20, 30).bool()
    mask[:10, :15] = True
    rows = torch.stack(
        [(randn(20, 30, seed=k) + 3 * k * randn(20, 30, seed=k).sign()) * mask for k in (1, 2)]
    )
    result = solved(update_structure, rows.flatten(1), (20, 30), tolerance=0).result
    assert result.sparsity == pytest.approx(0.75)
    assert result.rank == 10
    assert result.rank_share == 0.5
    assert result.overlap == pytest.approx(1)
    assert result.jaccard == pytest.approx(1)
    assert result.overlap_null == pytest.approx(0.25)


def test_independent_updates_overlap_by_chance() -> None:
    keep = torch.rand(6, 5000, generator=torch.Generator().manual_seed(0)) < 0.3
    result = solved(update_structure, randn(6, 5000) * keep, (50, 100), tolerance=0).result
    assert result.overlap == pytest.approx(result.overlap_null, rel=0.05)
    assert result.overlap_null == pytest.approx(0.3, rel=0.05)
    assert result.jaccard == pytest.approx(0.09 / 0.51, rel=0.07)


def test_full_rank_updates_that_are_sparse() -> None:
    keep = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    result = solved(update_structure, (randn(40, 40) * keep).flatten()[None], (40, 40), tolerance=0).result
    assert result.rank_share == 1
    assert result.overlap is None


def test_nothing_changed() -> None:
    result = solved(update_structure, torch.zeros(2, 12).double(), (4, 3)).result
    assert result.unchanged_rows == 2
    assert result.rank is None
    assert result.effective_rank_null is None


def test_ranks_beside_shuffled_entries() -> None:
    rows, _ = low_rank(6, 40, 30, 3, 0.0)
    low = solved(update_structure, rows, (40, 30), tolerance=0).result
    assert (low.rank, low.rank_null) == (3, 30)
    assert low.effective_rank < 3.01
    noise = solved(update_structure, randn(6, 1200), (40, 30), tolerance=0).result
    assert noise.effective_rank == pytest.approx(noise.effective_rank_null, rel=0.02)
    assert low.effective_rank_null == pytest.approx(noise.effective_rank_null, rel=0.1)


def test_few_entries_have_few_directions_by_chance() -> None:
    row = torch.zeros(1, 40 * 30).double()
    row[0, :5] = torch.arange(1.0, 6)
    answer = solved(update_structure, row, (40, 30), tolerance=0)
    assert (answer.result.rank, answer.result.rank_null) == (1, 5)


def test_shuffling_depends_on_seed_and_step_alone() -> None:
    rows = randn(3, 200).cumsum(1)
    first, second = (
        solved(update_structure, x, (20, 10)).arrays["effective_rank_null"] for x in (rows, rows[:2])
    )
    torch.testing.assert_close(first[:2], second, rtol=0, atol=0)
    other = solved(update_structure, rows, (20, 10), seed=1).arrays["effective_rank_null"]
    assert not torch.equal(first, other)

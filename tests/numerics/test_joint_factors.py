"""Joint factors against LAPACK on the rows themselves, bounds against the truth, and planted groups."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.numerics import joint_factors as jf
from tasks.numerics import layer_factors


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "outputs"), [(200, 30), (200, 6), (8, 30)])
def test_every_rank_loses_what_is_said(rows: int, outputs: int) -> None:
    """Also with fewer rows than inputs, and a dead input."""
    x, weight = drawn(rows, 12) * 0.7 ** torch.arange(12).double(), drawn(outputs, 12, seed=1)
    x[:, 5] = 0
    found = jf.joint_factors(weight, layer_factors.input_root(x.T @ x / rows))
    y = (x @ weight.T).numpy() / rows**0.5
    singular = np.linalg.svd(y, compute_uv=False)
    for rank, loss in enumerate(jf.lost(found.squared)):
        replaced = found.left[:, :rank] @ found.right[:rank]
        measured = np.square(y - (x @ replaced.T).numpy() / rows**0.5).sum()
        np.testing.assert_allclose(float(loss), measured, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(measured, np.square(singular[rank:]).sum(), rtol=1e-6, atol=1e-12)


def test_full_rank_gives_the_weights() -> None:
    weight = drawn(9, 5)
    found = jf.joint_factors(weight, torch.linalg.cholesky(torch.eye(5).double() + 1))
    torch.testing.assert_close(found.left @ found.right, weight, rtol=0, atol=1e-12)


def test_what_rows_do_not_show_is_of_the_weights() -> None:
    """One row: its component first, then those of the weights; all together are the weights."""
    weight, x = drawn(9, 5), drawn(5, 1, seed=3)
    found = jf.joint_factors(weight, x)
    torch.testing.assert_close(found.left @ found.right, weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.left[:, :1] @ (found.right[:1] @ x), weight @ x, rtol=0, atol=1e-12)
    assert float(found.squared[1:].max()) < 1e-25
    y = weight @ x
    rest = weight - y @ (y.T @ weight) / y.square().sum()
    two = found.left[:, :2] @ found.right[:2]
    torch.testing.assert_close((weight - two).square().sum(), torch.linalg.svdvals(rest)[1:].square().sum())


@settings(max_examples=100, deadline=None)
@given(
    heights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    columns=st.integers(1, 9),
    rank=st.integers(0, 12),
    decay=st.floats(0.2, 1.0),
    shared=st.floats(0.0, 1.0),
    seed=st.integers(0, 999),
)
def test_bounds_hold(
    heights: list[int], columns: int, rank: int, decay: float, shared: float, seed: int
) -> None:
    scale = decay ** torch.arange(columns).double()
    common = drawn(max(heights), columns, seed=seed)
    matrices = [
        (shared * common[:h] + (1 - shared) * drawn(h, columns, seed=seed + 1 + k)) * scale.roll(k)
        for k, h in enumerate(heights)
    ]
    squares = [torch.linalg.svdvals(m).square() for m in matrices]
    total = float(sum(s.sum() for s in squares))
    truth = jf.at_rank(jf.lost(torch.linalg.svdvals(torch.cat(matrices)).square()), rank)
    slack = 1e-10 * total + 1e-14
    assert jf.lower_bound(squares, rank) <= truth + slack
    assert truth <= jf.residual_bound(matrices, rank) + slack
    assert truth <= jf.weyl_bound(squares, rank) + slack
    if rank == 0:
        assert jf.residual_bound(matrices, rank) == pytest.approx(total)


def test_one_matrix_and_equal_ones_are_bounded_exactly() -> None:
    a = drawn(8, 6)
    own = jf.lost(torch.linalg.svdvals(a).square())
    for rank in range(7):
        assert jf.residual_bound([a], rank) == pytest.approx(float(own[rank]), abs=1e-12)
        assert jf.lower_bound([torch.linalg.svdvals(a).square()] * 2, rank) == pytest.approx(
            2 * float(own[rank]), abs=1e-12
        )


def test_components_are_dealt_by_worth() -> None:
    squares = [torch.tensor([9.0, 1.0]).double(), torch.tensor([8.0, 7.0]).double()]
    assert jf.dealt(squares, [1, 1], 3) == (1, 2)
    assert jf.dealt(squares, [1, 8], 3) == (2, 0)
    assert jf.dealt(squares, [1, 1], 99) == (2, 2)
    assert jf.dealt(squares, [1, 1], 0) == (0, 0)


def test_planted_groups() -> None:
    """Two families, each of one plane of its own; within a tolerance no family is mixed with another."""
    planes = [torch.linalg.qr(drawn(20, 3, seed=k)).Q.T for k in (0, 1)]
    matrices = [drawn(7, 3, seed=10 + k) @ planes[k % 2] + 0.01 * drawn(7, 20, seed=20 + k) for k in range(6)]
    found = jf.grouped(matrices, 0.1, 3)
    assert {group.members for group in found} == {(0, 2, 4), (1, 3, 5)}
    for group in found:
        squared = torch.linalg.svdvals(torch.cat([matrices[k] for k in group.members])).square()
        assert group.error == pytest.approx(float(squared[3:].sum() / squared.sum()), rel=1e-8)
        assert group.error <= group.bound <= 0.1**2
    assert len(jf.grouped(matrices, 0.9999, 3)) == 1
    assert len(jf.grouped(matrices, 1e-6, 3)) == 6
    assert [g.error for g in jf.grouped(matrices[:1], 0.1, 20)] == [0.0]

"""Appended rows and columns against LAPACK on the whole matrix."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.numerics.updating import Truncated, append_columns, append_rows, truncated


def drawn(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(found: Truncated) -> Tensor:
    return found.left @ torch.diag(found.singular) @ found.right


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    new=st.integers(1, 8),
    rank=st.integers(1, 12),
    side=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bounds_hold_and_bases_stay_orthonormal(
    rows: int, columns: int, new: int, rank: int, side: bool, seed: int
) -> None:
    a = drawn(rows, columns, seed)
    found, full = truncated(a, rank), a
    for step in range(4):
        if side:
            more = drawn(new, columns, seed + step + 100)
            found, full = append_rows(found, more, rank), torch.cat([full, more])
        else:
            more = drawn(rows, new, seed + step + 100)
            found, full = append_columns(found, more, rank), torch.cat([full, more], 1)
    off = full - whole(found)
    assert float(torch.linalg.matrix_norm(off, 2)) <= found.spectral + 1e-10
    assert float(torch.linalg.matrix_norm(off)) <= found.frobenius + 1e-10
    eye = torch.eye(len(found.singular), dtype=torch.float64)
    torch.testing.assert_close(found.left.T @ found.left, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.right @ found.right.T, eye, rtol=0, atol=1e-12)
    assert bool((found.singular <= torch.linalg.svdvals(full)[: len(found.singular)] + 1e-10).all())


def test_low_rank_is_followed_exactly() -> None:
    """Rows of one three-dimensional space, and rows already inside the basis."""
    a = drawn(30, 3, 0) @ drawn(3, 12, 1)
    found = truncated(a[:10], 5)
    for low in (10, 20):
        found = append_rows(found, a[low : low + 10], 5)
    torch.testing.assert_close(whole(found), a, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.singular[:3], torch.linalg.svdvals(a)[:3])
    assert found.frobenius < 1e-11

"""The largest product of each row: against all products in float64, where float32 cannot tell, in any cuts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.numerics.largest_product import Best, improved
from tasks.numerics.largest_products import largest, none_yet


def searched(x: torch.Tensor, y: torch.Tensor, barred: torch.Tensor, edges: list[int]) -> Best:
    n = len(x)
    best = Best(x.new_zeros(n), torch.full((n,), -1), torch.zeros_like(x))
    index = torch.arange(len(y))
    for a, b in zip([0, *edges], [*edges, len(y)], strict=True):
        if a < b:
            improved(best, x, barred, y[a:b], index[a:b])
    return best


def as_of_all(x: torch.Tensor, y: torch.Tensor, barred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By the search that takes every product in float64."""
    alone = torch.full((len(x),), -2)
    found = largest(none_yet(len(x), 1, "cpu"), x, alone, y, torch.arange(len(y)), barred=barred)
    return found.product[:, 0].abs(), found.column[:, 0]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 700),
    m=st.integers(1, 1200),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    exponent=st.integers(-140, 100),
    spread=st.sampled_from([0.0, 3.0]),
    edges=st.lists(st.integers(0, 1200), max_size=4),
)
def test_what_a_search_in_float64_finds(
    n: int, m: int, width: int, seed: int, exponent: int, spread: float, edges: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, width)))
    y = torch.from_numpy(
        rng.standard_normal((m, width)) * np.exp(spread * rng.standard_normal((m, 1))) * 10.0**exponent
    )
    barred = torch.from_numpy(rng.integers(-1, m, (n, 3)))
    found = searched(x, y, barred, sorted(min(e, m) for e in edges))
    size, column = as_of_all(x, y, barred)
    np.testing.assert_allclose(found.size, size, rtol=1e-12)
    differ = found.name != column  # products that differ by rounding
    assert differ.sum() <= 1
    assert torch.equal(found.size, searched(x, y, barred, []).size)
    assert torch.equal(found.name, searched(x, y, barred, [m // 2]).name)
    column = found.name
    assert torch.equal(found.column[column >= 0], y[column[column >= 0]])


@pytest.mark.parametrize("apart", [1e-9, 1e-14, 0.0])
def test_columns_that_float32_cannot_tell_apart(apart: float) -> None:
    """The last is the largest by a little, or equal and later than all."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal(40)
    y = torch.from_numpy(np.repeat(one[None], 1500, 0))
    y[-1] *= 1 + apart
    x = torch.from_numpy(rng.standard_normal((30, 40)))
    barred = torch.full((30, 1), -1)
    found = searched(x, y, barred, [700])
    assert (found.name == (1499 if apart else 0)).all()
    np.testing.assert_allclose(found.size, as_of_all(x, y, barred)[0], rtol=1e-14)


def test_rows_and_columns_of_zeros_have_no_best() -> None:
    x, y = torch.zeros(3, 4, dtype=torch.float64), torch.ones(5, 4, dtype=torch.float64)
    nobody = torch.full((3, 1), -1)
    assert (searched(x, y, nobody, []).name == -1).all()
    assert (searched(torch.ones_like(x), torch.zeros_like(y), nobody, [2]).name == -1).all()


@pytest.mark.parametrize("allowed", ["high", "medium"])
def test_coarser_products_of_float32_change_nothing(allowed: str) -> None:
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(rng.standard_normal((n, 20))) for n in (600, 1300))
    nobody = torch.full((600, 1), -1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        found = searched(x, y, nobody, [300])
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(found.size, as_of_all(x, y, nobody)[0], rtol=1e-14)


def test_what_is_orthogonal_but_for_rounding_is_no_product() -> None:
    q = np.linalg.qr(np.random.default_rng(2).standard_normal((40, 40)))[0]
    x, y = torch.from_numpy(q[:15].copy()), torch.from_numpy(q[15:].copy())
    nobody = torch.full((15, 1), -1)
    assert (searched(x, y, nobody, [4]).name == -1).all()
    y[7] += 1e-11 * x[3]
    found = searched(x, y, nobody, [4])
    assert (found.name == torch.where(torch.arange(15) == 3, 7, -1)).all()
    assert float(found.size[3]) == pytest.approx(1e-11, rel=1e-3)


def test_a_product_that_float32_makes_nothing_of() -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    y = torch.tensor([[1.0, -1.0], [1.0, -1.0 + 1e-9]], dtype=torch.float64)
    assert searched(x, y, torch.full((1, 1), -1), []).name.tolist() == [1]

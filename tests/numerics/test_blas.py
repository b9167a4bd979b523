"""Products by BLAS on the memory of tensors, beside other threads."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics import blas


@given(n=st.integers(0, 40), width=st.integers(1, 30), seed=st.integers(0, 99), rows=st.booleans())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_product_is_added_to_the_upper_triangle(
    n: int, width: int, seed: int, rows: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    z = torch.randn(n, width, dtype=dtype)
    size = n if rows else width
    before = torch.randn(size, size, dtype=dtype)
    c = before.clone()
    blas.add_product(c, z, rows)
    true = before.double() + (z.double() @ z.double().T if rows else z.double().T @ z.double())
    torch.testing.assert_close(
        c.triu().double(), true.triu(), rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12
    )
    assert torch.equal(c.tril(-1), before.tril(-1))


def test_outer_products_are_added_to_the_upper_triangle() -> None:
    g, a, b = torch.randn(9, 9).double(), torch.randn(9).double(), torch.randn(9).double()
    c = g.clone()
    blas.add_outer(c, a, b)
    true = g + torch.outer(a, b) + torch.outer(b, a)
    torch.testing.assert_close(c.triu(), true.triu())
    assert torch.equal(c.tril(-1), g.tril(-1))


@pytest.mark.parametrize(
    ("c", "z"),
    [
        (torch.zeros(4, 4), torch.zeros(3, 4).double()),
        (torch.zeros(4, 4), torch.zeros(4, 3).T),
        (torch.zeros(8, 4)[::2], torch.zeros(3, 4)),
    ],
)
def test_other_memory_is_refused(c: torch.Tensor, z: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected contiguous"):
        blas.add_product(c, z)


@pytest.mark.parametrize(("rows", "size"), [(False, 4), (False, 6), (True, 5)])
def test_a_product_that_has_another_size_is_refused(rows: bool, size: int) -> None:
    with pytest.raises(ValueError, match=rf"found {size} sums for rows of shape \(3, 5\)"):
        blas.add_product(torch.zeros(size, size), torch.zeros(3, 5), rows)


@pytest.mark.alone
def test_other_threads_go_on_meanwhile() -> None:
    c, z = torch.zeros(1500, 1500).double(), torch.randn(8000, 1500).double()  # some tenths of a second
    began, done = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        blas.add_product(c, z)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    steps = 0
    while not done.is_set():
        steps += 1
        done.wait(0.001)
    thread.join()
    assert steps > 10

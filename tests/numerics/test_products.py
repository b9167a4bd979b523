"""Products with a covariance that is never formed, the best that they say of it, and an honest estimate of the rest."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.numerics import nystrom, products, subspace


def folded(x: Tensor, q: Tensor, shift: Tensor, pieces: int, weight: Tensor | None = None) -> products.State:
    parts = torch.arange(len(x)).tensor_split(pieces)
    states = [products.partial(x[p], None if weight is None else weight[p], q, shift) for p in parts]
    while len(states) > 1:
        states = [products.merge(*states[:2]), *states[2:]]
    return states[0]


def drawn(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def semidefinite(d: int, power: float, seed: int) -> Tensor:
    turn = torch.linalg.qr(drawn(d, d, seed)).Q
    return (turn * torch.arange(1, d + 1).double() ** -power) @ turn.T


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.integers(1, 9), offset=st.sampled_from([0.0, 1e4]), known=st.booleans(), seed=st.integers(0, 9)
)
def test_sums_are_those_of_the_covariance(pieces: int, offset: float, known: bool, seed: int) -> None:
    x, q = drawn(50, 8, seed) + offset, subspace.start(8, 3, seed)
    weight = torch.rand(50, generator=torch.Generator().manual_seed(seed)).double()
    shift = x.mean(0) if known else torch.zeros(8, dtype=torch.float64)
    state = folded(x, q, shift, pieces, weight)
    mean = (weight @ x) / weight.sum()
    z = x - mean
    torch.testing.assert_close(state["p"], z.T @ (weight[:, None] * z) @ q, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state["mean"] + shift, mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state["energy"], (weight[:, None] * z * z).sum(), rtol=1e-10, atol=0)


@settings(max_examples=40, deadline=None)
@given(d=st.integers(3, 30), columns=st.integers(1, 10), power=st.floats(0.1, 4), seed=st.integers(0, 99))
def test_the_approximation_lies_below(d: int, columns: int, power: float, seed: int) -> None:
    c, q = semidefinite(d, power, seed), subspace.start(d, min(d, columns), seed + 1)
    values, vectors = nystrom.approximate(c @ q, q)
    left = torch.linalg.eigvalsh(c - vectors.T @ (values[:, None] * vectors))
    outside = torch.eye(d).double() - q @ q.T
    assert float(left[0]) > -1e-12
    assert float(left[-1]) <= float(torch.linalg.matrix_norm(outside @ c @ outside, 2)) + 1e-12
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors)).double(), rtol=0, atol=1e-12)


def test_low_rank_is_exact_and_nothing_is_nothing() -> None:
    basis = torch.linalg.qr(drawn(40, 3, 0)).Q
    c, q = (basis * torch.tensor([9.0, 4.0, 1.0]).double()) @ basis.T, subspace.start(40, 6, 1)
    values, vectors = nystrom.approximate(c @ q, q)
    torch.testing.assert_close(values, torch.tensor([9.0, 4, 1, 0, 0, 0]).double(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vectors[:3].T @ (values[:3, None] * vectors[:3]), c, rtol=0, atol=1e-12)
    none, _ = nystrom.approximate(torch.zeros_like(q), q)
    assert not none.any()


def test_the_error_estimate_is_near() -> None:
    """Twenty test vectors: within a quarter of the true error in 95 % of 200 trials."""
    near, ratios = 0, []
    for seed in range(200):
        c, q = semidefinite(60, 0.5, seed), subspace.start(60, 8, seed + 1000)
        values, vectors = nystrom.approximate(c @ q, q)
        test = drawn(60, 20, seed + 5000)
        estimate = nystrom.frobenius_error(test, c @ test, values, vectors)
        true = float(torch.linalg.matrix_norm(c - vectors.T @ (values[:, None] * vectors)))
        near += abs(estimate / true - 1) < 0.25
        ratios.append((estimate / true) ** 2)
    assert near >= 190
    assert abs(np.mean(ratios) - 1) < 0.03


def test_adding_in_one_order_gives_the_same_bytes() -> None:
    x, q = drawn(90, 12, 0), subspace.start(12, 4, 0)
    one, other = (folded(x, q, torch.zeros(12).double(), 4) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)

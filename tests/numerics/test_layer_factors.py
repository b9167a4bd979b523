"""Factors of weights: against whitening by Cholesky, brute force over projections, and measured errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import layer_factors
from tasks.numerics.layer_factors import Factors


def made(outputs: int, inputs: int, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs in rows of unequal variance, and their second moment."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((outputs, inputs)))
    spread = np.exp(rng.standard_normal(inputs))
    x = torch.from_numpy(
        rng.standard_normal((rows, inputs)) * spread @ rng.standard_normal((inputs, inputs)) + 1
    )
    return weight, x, x.T @ x / rows


def whitened_by_cholesky(weight: Tensor, gram: Tensor, rank: int) -> Tensor:
    """As it is published: the SVD of W L, truncated, times the inverse of L."""
    lower = torch.linalg.cholesky(gram)
    u, s, v = torch.linalg.svd(weight @ lower, full_matrices=False)
    return torch.linalg.solve_triangular(lower, (u[:, :rank] * s[:rank]) @ v[:rank], upper=False, left=False)


def cut(factors: Factors, rank: int) -> Tensor:
    return factors.left[:, :rank] @ factors.right[:rank]


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9)])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_whitening_without_whitening(shape: tuple[int, int], rank: int) -> None:
    weight, _, gram = made(*shape, 200, 0)
    found = cut(layer_factors.factored(weight, layer_factors.input_root(gram)), rank)
    expected = whitened_by_cholesky(weight, gram, rank)
    assert float((found - expected).norm() / weight.norm()) < 1e-8


@settings(max_examples=30, deadline=None)
@given(
    outputs=st.integers(1, 12),
    inputs=st.integers(1, 12),
    rows=st.integers(1, 40),
    seed=st.integers(0, 50),
    two=st.booleans(),
)
def test_the_error_of_every_rank_is_told(outputs: int, inputs: int, rows: int, seed: int, two: bool) -> None:
    """On the rows themselves, fewer than features too; never rising, nothing at full rank."""
    weight, x, gram = made(outputs, inputs, rows, seed)
    rng = np.random.default_rng(seed)
    g = torch.from_numpy(rng.standard_normal((rows, outputs)))
    metric = g.T @ g / rows
    roots = layer_factors.output_roots(metric, 0.01) if two else None
    root = layer_factors.input_root(gram)
    factors = layer_factors.factored(weight, root, roots)
    told = layer_factors.losses(factors, root, roots)
    assert len(told) == factors.left.shape[1] + 1
    scale = float(told[0]) + 1e-300
    for rank, loss in enumerate(told.tolist()):
        away = x @ (weight - cut(factors, rank)).T
        if roots is not None:
            away = away @ roots.root
        assert float(away.square().sum() / rows) == pytest.approx(loss, rel=1e-6, abs=1e-11 * scale)
    assert (told.diff() <= 1e-12 * scale).all()
    assert float((cut(factors, len(told)) - weight).norm()) <= 1e-6 * float(weight.norm())


def test_no_weights_of_that_rank_are_better() -> None:
    """Against many steps of alternating least squares from the factors, and from others."""
    weight, _, gram = made(6, 5, 100, 1)
    metric = made(6, 6, 50, 2)[2]
    root, roots = layer_factors.input_root(gram), layer_factors.output_roots(metric, 0.01)
    best = float(layer_factors.losses(layer_factors.factored(weight, root, roots), root, roots)[2])
    target = roots.root @ weight @ root
    rng = np.random.default_rng(0)
    for _ in range(20):
        left = torch.from_numpy(rng.standard_normal((6, 2)))
        for _ in range(200):
            right = torch.linalg.lstsq(left, target).solution
            left = torch.linalg.lstsq(right.T, target.T).solution.T
        assert float((target - left @ right).square().sum()) >= best * (1 - 1e-9)
        assert float((target - left @ right).square().sum()) == pytest.approx(best, rel=1e-6)


def test_losses_of_factors_that_are_not_the_best() -> None:
    weight, x, gram = made(7, 9, 300, 3)
    root, plain = layer_factors.input_root(gram), layer_factors.factored(weight)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    told = layer_factors.losses(plain, root)
    for rank in range(8):
        expected = weight - (u[:, :rank] * s[:rank]) @ v[:rank]
        assert float((x @ expected.T).square().sum() / len(x)) == pytest.approx(float(told[rank]), abs=1e-10)
    assert (told >= layer_factors.losses(layer_factors.factored(weight, root), root) - 1e-10).all()


def test_dead_inputs_and_outputs() -> None:
    weight, x, _ = made(5, 6, 80, 4)
    x[:, 2] = 0
    gram = x.T @ x / len(x)
    root = layer_factors.input_root(gram)
    assert root.shape == (6, 5)
    factors = layer_factors.factored(
        weight, root, layer_factors.output_roots(torch.zeros(5, 5).double(), 0.01)
    )
    torch.testing.assert_close(cut(factors, 5), weight)
    nothing = layer_factors.factored(weight, torch.zeros(6, 0, dtype=torch.float64))
    torch.testing.assert_close(cut(nothing, 5), weight)
    assert not layer_factors.losses(nothing, torch.zeros(6, 0, dtype=torch.float64)).any()


def test_weights_that_are_not_finite() -> None:
    with pytest.raises(MethodError, match="not finite"):
        layer_factors.input_root(torch.full((3, 3), torch.nan, dtype=torch.float64))


def test_the_rank_of_a_share() -> None:
    assert layer_factors.fitting_rank(0.8, 384, 384) == 153
    assert layer_factors.fitting_rank(0.6, 1536, 384) == 184
    assert layer_factors.fitting_rank(1e-9, 10, 10) == 1

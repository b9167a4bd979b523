"""Utilised weights: against projectors from LAPACK in float64, planted subspaces, and the best of any rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.numerics import layer_factors
from tasks.numerics.utilised import directions, losses, utilised


def drawn(outputs: int, inputs: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights, and inputs in rows of unequal variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs)) * np.exp(rng.standard_normal(inputs))
    return torch.from_numpy(rng.standard_normal((outputs, inputs))), torch.from_numpy(x)


def projected(weight: np.ndarray, x: np.ndarray, share: float) -> tuple[np.ndarray, int, int]:
    """P_T W P_S from the singular vectors of inputs and outputs themselves."""

    def leading(rows: np.ndarray) -> np.ndarray:
        _, s, v = np.linalg.svd(rows, full_matrices=False)
        s = np.where(s > 1e-7 * s[0], s, 0)
        held = np.cumsum(s**2) / (s**2).sum()
        return np.asarray(v[: 1 + int(np.argmax(held >= share * (1 - 1e-12)))])

    inputs, outputs = leading(x), leading(x @ weight.T)
    return outputs.T @ outputs @ weight @ inputs.T @ inputs, len(inputs), len(outputs)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 12),
    inputs=st.integers(1, 12),
    rows=st.integers(1, 40),
    share=st.sampled_from([0.3, 0.8, 0.97]),
    seed=st.integers(0, 2**20),
)
def test_projections_and_losses_of_every_rank(
    outputs: int, inputs: int, rows: int, share: float, seed: int
) -> None:
    weight, x = drawn(outputs, inputs, rows, seed)
    found = directions(weight, x.T @ x / rows)
    made = utilised(weight, found, share)
    expected, n_inputs, n_outputs = projected(weight.numpy(), x.numpy(), share)
    assert (made.input_rank, made.output_rank) == (n_inputs, n_outputs)
    assert made.factors.left.shape[1] == min(n_inputs, n_outputs)
    scale = float(weight.norm())
    np.testing.assert_allclose((made.factors.left @ made.factors.right).numpy(), expected, atol=1e-7 * scale)
    lost = losses(weight, made.factors, found.root)
    energy = float((x @ weight.T).square().sum(1).mean())
    for rank, loss in enumerate(lost):
        cut = made.factors.left[:, :rank] @ made.factors.right[:rank]
        measured = float((x @ (weight - cut).T).square().sum(1).mean())
        assert float(loss) == pytest.approx(measured, rel=1e-6, abs=1e-10 * energy)
    assert (lost >= found.losses[: len(lost)] - 1e-9 * energy).all()  # nothing of a rank is better


def test_planted_subspaces() -> None:
    """Inputs in 3 directions and weights into 2: everything is kept by two components."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=rng).double() @ torch.randn(3, 9, generator=rng).double()
    into = torch.randn(7, 2, generator=rng).double() @ torch.randn(2, 9, generator=rng).double()
    found = directions(into, x.T @ x / len(x))
    made = utilised(into, found, 1.0)
    assert (made.input_rank, made.output_rank) == (3, 2)
    assert torch.allclose(x @ (made.factors.left @ made.factors.right).T, x @ into.T)
    assert float(losses(into, made.factors, found.root)[-1]) <= 1e-12 * float(found.losses[0])


@pytest.mark.parametrize(("weight", "gram"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_to_keep(weight: float, gram: float) -> None:
    """One component of zeros, or of what no input has seen."""
    w, g = torch.full((3, 4), weight).double(), gram * torch.eye(4).double()
    found = directions(w, g)
    made = utilised(w, found, 0.99)
    assert made.output_rank == 0
    assert made.factors.left.shape == (3, 1)
    assert float((made.factors.left @ made.factors.right).abs().max()) == 0
    assert torch.equal(losses(w, made.factors, found.root), torch.zeros(2).double())


def test_losses_of_factors_that_are_the_weights() -> None:
    weight, x = drawn(5, 8, 60, 3)
    gram = x.T @ x / 60
    root = layer_factors.input_root(gram)
    factors = layer_factors.factored(weight, root)
    assert torch.allclose(losses(weight, factors, root), layer_factors.losses(factors, root), atol=1e-9)

"""Rotations that split energy: orthogonal, no products between the parts, uniform inside of them."""

import numpy as np
import pytest
import torch

from tasks.numerics.residual_rotation import random_rotation, rotation


@pytest.mark.parametrize("high", [0, 3, 12])
def test_the_split_holds_the_leading_energy(high: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, dtype=torch.float64, generator=generator) * 0.6 ** torch.arange(12) + 0.3
    gram = x.T @ x / 300
    found = rotation(gram, high, 0)
    torch.testing.assert_close(found.matrix.T @ found.matrix, torch.eye(12).double())
    turned = found.matrix.T @ gram @ found.matrix
    assert turned[:high, high:].abs().sum() < 1e-12
    values = np.linalg.eigvalsh(gram.numpy())[::-1]
    assert found.energy == pytest.approx(values[:high].sum() / values.sum())
    assert float(turned[:high, :high].trace()) == pytest.approx(values[:high].sum(), abs=1e-12)
    assert not torch.allclose(rotation(gram, high, 1).matrix, found.matrix)
    assert torch.equal(rotation(gram, high, 0).matrix, found.matrix)


def test_random_rotations_are_uniform() -> None:
    """Entries of a Haar matrix have mean 0 and variance 1 / width, and its first column no preferred sign."""
    rng = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_rotation(5, rng) for _ in range(4000)])
    assert drawn.mean(0).abs().max() < 0.03
    assert (drawn.square().mean(0) - 0.2).abs().max() < 0.015
    torch.testing.assert_close(drawn[0] @ drawn[0].T, torch.eye(5).double())


def test_no_energy_at_all() -> None:
    found = rotation(torch.zeros(4, 4).double(), 2, 0)
    assert found.energy == 0
    torch.testing.assert_close(found.matrix.T @ found.matrix, torch.eye(4).double())

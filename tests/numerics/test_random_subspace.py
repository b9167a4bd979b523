"""Random subspaces against their matrices, scipy's Hadamard matrix, and the distribution that they stand for."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as hadamard_matrix
from torch import Tensor

from tasks.numerics.random_subspace import Kind, hadamard, random_subspaces
from tests.methods.training import subspace

KINDS: tuple[Kind, ...] = ("dense", "fastfood")
LIKE = torch.empty(0, dtype=torch.float64)


def matrix(kind: Kind, entries: int, coordinates: int, seed: int = 0) -> Tensor:
    space = subspace(kind, entries, coordinates, seed)
    return torch.stack([space.out(row) for row in torch.eye(coordinates, dtype=torch.float64)], 1)


@given(power=st.integers(0, 7))
@settings(deadline=None)
def test_the_transform_is_the_matrix(power: int) -> None:
    x = torch.randn(3, 2**power, dtype=torch.float64)
    expected = x.numpy() @ hadamard_matrix(2**power)
    np.testing.assert_allclose(hadamard(x).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(entries=st.integers(1, 700), coordinates=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_back_is_the_transpose(kind: Kind, entries: int, coordinates: int, seed: int) -> None:
    space = subspace(kind, entries, coordinates, seed)
    z, g = torch.randn(coordinates, dtype=torch.float64), torch.randn(entries, dtype=torch.float64)
    torch.testing.assert_close(space.out(z) @ g, space.back(g, coordinates) @ z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_shorter_ones_are_the_first_of_longer(kind: Kind) -> None:
    space = subspace(kind, 500, 20, 3)
    z, g = torch.randn(7, dtype=torch.float64), torch.randn(500, dtype=torch.float64)
    longer = torch.cat([z, torch.zeros(13, dtype=torch.float64)])
    torch.testing.assert_close(space.out(z), space.out(longer))
    torch.testing.assert_close(space.back(g, 7), space.back(g, 20)[:7])


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_orthonormal_in_the_mean(kind: Kind) -> None:
    p = matrix(kind, 20_000, 40)
    length = torch.linalg.vector_norm(p, dim=0)
    assert float((length - 1).abs().max()) < (1e-6 if kind == "dense" else 0.05)
    off = p.T @ p - torch.diag(length.square())
    assert float(off.square().sum(1).max()) < 5 * 40 / 20_000  # unrelated columns: 1 / entries each


@pytest.mark.parametrize("kind", KINDS)
def test_entries_are_normal_over_draws(kind: Kind) -> None:
    drawn = torch.stack([matrix(kind, 300, 2, seed) for seed in range(200)]).flatten() * 300**0.5
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.square().mean()) == pytest.approx(1, abs=0.02)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_dtypes(kind: Kind) -> None:
    assert torch.equal(matrix(kind, 90, 5, 1), matrix(kind, 90, 5, 1))
    assert not torch.equal(matrix(kind, 90, 5, 1), matrix(kind, 90, 5, 2))
    (single,) = random_subspaces(kind, 90, 5, 1, 1, torch.empty(0))
    torch.testing.assert_close(
        single.out(torch.ones(5)).double(), matrix(kind, 90, 5, 1).sum(1), rtol=1e-4, atol=1e-5
    )


def test_draws_are_others_for_every_seed() -> None:
    drawn = [space for seed in range(4) for space in random_subspaces("dense", 50, 3, seed, 3, LIKE)]
    first = {float(space.out(torch.ones(3, dtype=torch.float64))[0]) for space in drawn}
    assert len(first) == 12
    again = random_subspaces("dense", 50, 3, 2, 3, LIKE)[1]
    assert torch.equal(again.out(torch.ones(3).double()), drawn[7].out(torch.ones(3).double()))


def test_threads_share_what_is_made() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: random_subspaces("dense", 200_000, 20, 5, 2, LIKE), range(4)))
    assert all(one is found[0] for one in found)

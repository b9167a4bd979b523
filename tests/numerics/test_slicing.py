"""Directions by LAPACK on the rows themselves, tails by plain sums, damping that turns nothing, and widths by trying all."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tasks.numerics import slicing


@pytest.mark.parametrize("centred", [True, False])
def test_rows_are_as_the_norm_makes_them(centred: bool) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * 5 + 3
    x[2] = 0
    norm = torch.nn.LayerNorm(8, eps=0).double() if centred else torch.nn.RMSNorm(8, eps=0).double()
    rows = torch.arange(6) != 2
    found = slicing.normalised(x, centred)
    torch.testing.assert_close(found[rows], norm(x[rows].double()).detach(), atol=1e-12, rtol=1e-12)
    assert (found[2] == 0).all()


def test_directions_are_right_singular_vectors() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 7)) * 0.5 ** np.arange(7) + 1
    _, s, v = np.linalg.svd(rows, full_matrices=False)
    found = slicing.directions(torch.from_numpy(rows.T @ rows / 50))
    np.testing.assert_allclose(found.energy.numpy(), s**2 / 50, atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors.numpy() * v, 1)), 1, atol=1e-10)
    behind = [float((s[k:] ** 2).sum() / (s**2).sum()) for k in range(8)]
    np.testing.assert_allclose(slicing.tails(found.energy).numpy(), behind, atol=1e-12)
    kept = found.vectors[:3].T
    lost = np.square(rows - rows @ (kept @ kept.T).numpy()).sum() / np.square(rows).sum()
    assert lost == pytest.approx(behind[3], rel=1e-10)


def test_damping_turns_no_direction() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    second = rows.T @ rows / 40
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    a, b = slicing.directions(second), slicing.directions(damped)
    torch.testing.assert_close(a.vectors, b.vectors, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        b.energy - a.energy, 0.01 * second.diagonal().mean().expand(6), atol=1e-12, rtol=0
    )


def test_no_energy_loses_nothing() -> None:
    assert (slicing.tails(torch.zeros(2, 3, dtype=torch.float64)) == 0).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_dealt_widths_lose_least_for_what_they_cost(seed: int, kept: int) -> None:
    """Beside all ways that cost one less than may be spent: the ends, which cost two, may not fit as the last step."""
    energy = np.sort(np.random.default_rng(seed).exponential(size=(4, 6)), 1)[:, ::-1].copy()
    loss = slicing.tails(torch.from_numpy(energy))
    found = slicing.dealt(loss, kept, 1)
    assert found[0] == found[-1]
    assert sum(found) <= 4 * kept

    def lost(widths: tuple[int, ...] | list[int]) -> float:
        return sum(float(one[k]) for one, k in zip(loss, widths, strict=True))

    others = [(a, b, c, a) for a, b, c in product(range(1, 7), repeat=3) if 2 * a + b + c < 4 * kept]
    assert lost(found) <= min(map(lost, others), default=4.0) + 1e-12


def test_multiples_and_too_few_sites() -> None:
    assert [slicing.rounded(share, 64, 8) for share in (0.01, 0.75, 0.99, 1.0)] == [8, 48, 56, 64]
    assert slicing.rounded(0.9, 10, 3) == 9
    assert slicing.rounded(0.7, 10, 1) == 7
    loss = slicing.tails(torch.rand(5, 20, dtype=torch.float64).sort(1, descending=True).values)
    assert all(width % 8 == 0 or width == 20 for width in slicing.dealt(loss, 16, 8))
    assert slicing.worst(loss, [20, 20, 3, 20, 20])[0] == 2
    with pytest.raises(MethodError, match="found 2 sites"):
        slicing.dealt(loss[:2], 16, 8)

"""Leading directions against LAPACK, shares against a plain loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics.spectral_alignment import (
    EXACT,
    TOLERANCE,
    centred_if_one_sided,
    leading_direction,
    majority_share,
    singular_values,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gapped(out: int, width: int) -> tuple[torch.Tensor, np.ndarray]:
    """A map whose leading direction stands out, and this direction by LAPACK in float64."""
    weight = (
        randn(out, width) / width**0.5 + 3 * torch.outer(randn(out, seed=1), randn(width, seed=2)) / width
    )
    return weight, np.linalg.svd(weight.double().numpy())[2][0]


@pytest.mark.parametrize(("out", "width"), [(8, 5), (5, 8), (200, 150), (150, 200)])
def test_directions_are_those_of_an_svd(out: int, width: int) -> None:
    weight, expected = gapped(out, width)
    found = leading_direction(weight)
    assert abs(found.vector.double().numpy() @ expected) > 1 - 1e-5
    assert found.residual <= TOLERANCE
    assert (found.residual == 0) == (min(out, width) <= EXACT)


def test_a_good_start_is_kept_and_scale_means_nothing() -> None:
    weight, expected = gapped(200, 150)
    first = leading_direction(weight)
    for scale in (1e-30, 1e30):
        again = leading_direction(weight * scale, first.vector)
        assert abs(again.vector.double().numpy() @ expected) > 1 - 1e-5
    other = leading_direction(weight, torch.full((150,), math.nan))
    assert torch.equal(other.vector, first.vector)


def test_the_residual_is_told_where_directions_are_nearly_equal() -> None:
    found = leading_direction(torch.linalg.qr(randn(100, 100)).Q)
    assert 0 <= found.residual < TOLERANCE  # any direction of an orthogonal map is a leading one
    square = leading_direction(randn(300, 300))
    vector = square.vector.double()
    image = randn(300, 300).double().T @ (randn(300, 300).double() @ vector)
    size = float(image @ vector)
    assert float((image - size * vector).norm()) / size <= max(square.residual, TOLERANCE) * 1.01


@pytest.mark.parametrize("weight", [torch.zeros(100, 80), torch.full((100, 80), math.nan), torch.zeros(3, 2)])
def test_maps_without_a_direction(weight: torch.Tensor) -> None:
    found = leading_direction(weight)
    assert found.vector.isnan().all()
    assert math.isnan(found.residual)
    assert math.isnan(majority_share(randn(5, weight.shape[1]), found.vector))


@given(
    signs=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=40),
    scale=st.sampled_from([-2.0, 1e-3, 5.0]),
)
def test_shares_are_those_of_a_loop(signs: list[float], scale: float) -> None:
    rows = torch.tensor(signs).reshape(-1, 1) * torch.tensor([[1.0, 2.0]])
    found = majority_share(rows, scale * torch.tensor([1.0, 2.0]))
    up, down = signs.count(1.0), signs.count(-1.0)
    if up + down == 0:
        assert math.isnan(found)
    else:
        assert found == max(up, down) / (up + down)


def test_planted_alignment() -> None:
    weight, expected = gapped(200, 150)
    vector = leading_direction(weight).vector
    along = torch.from_numpy(expected).float() + 0.01 * randn(500, 150, seed=3)
    assert majority_share(along, vector) == 1
    assert majority_share(randn(4000, 150, seed=4), vector) < 0.53
    assert majority_share(torch.tensor([[math.nan, 1.0], [1.0, 1.0]]), torch.ones(2)) == 1


def test_only_one_sided_rows_are_centred() -> None:
    rows = randn(30, 20)
    assert centred_if_one_sided(rows) is rows
    positive = centred_if_one_sided(rows.relu())
    np.testing.assert_allclose(positive, rows.relu() - rows.relu().mean(1, keepdim=True))
    assert centred_if_one_sided(rows[:0]).shape == (0, 20)


def test_singular_values_are_those_about_the_mean() -> None:
    rows = randn(30, 20) + 5
    expected = np.linalg.svd(rows.double().numpy() - rows.double().numpy().mean(0), compute_uv=False)
    np.testing.assert_allclose(singular_values(rows), expected, atol=1e-12)
    assert not len(singular_values(rows[:0]))
    assert not len(singular_values(torch.full((3, 2), math.inf)))

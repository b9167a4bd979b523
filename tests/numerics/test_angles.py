"""Angles against SciPy, planted rotations down to 1e-9, and closed forms."""

import math

import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tasks.numerics.angles import distances, orthonormal, principal_angles


def random_basis(k: int, d: int, seed: int) -> torch.Tensor:
    return orthonormal(torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def rotated(theta: list[float], d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two bases in random position whose angles are exactly these."""
    k, turn = len(theta), torch.tensor(theta, dtype=torch.float64)
    frame = random_basis(2 * k, d, 3)
    mix = random_basis(k, k, 4)
    return frame[:k], mix @ (turn.cos()[:, None] * frame[:k] + turn.sin()[:, None] * frame[k:])


@pytest.mark.parametrize(
    "theta", [[1e-9], [1e-9, 1e-4, 0.3], [1e-12, 0.785, 1.2, math.pi / 2], [math.pi / 2] * 3]
)
def test_planted_angles_are_recovered(theta: list[float]) -> None:
    a, b = rotated(theta, 40)
    for found in (principal_angles(a, b), principal_angles(b, a)):
        np.testing.assert_allclose(found, theta, rtol=1e-6, atol=1e-15)


@given(k=st.integers(1, 6), other=st.integers(1, 6), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_angles_equal_scipy(k: int, other: int, seed: int) -> None:
    a, b = random_basis(k, 14, seed), random_basis(other, 14, seed + 100)
    expected = np.sort(scipy.linalg.subspace_angles(a.T.numpy(), b.T.numpy()))
    np.testing.assert_allclose(principal_angles(a, b), expected, atol=1e-12)


def test_a_space_has_no_angle_to_itself_in_another_basis() -> None:
    a = random_basis(5, 60, 0)
    found = distances(a, random_basis(5, 5, 1) @ a)
    assert max(found.geodesic, found.chordal, found.projection, found.binet_cauchy) < 1e-14
    assert found.overlap == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("k", [1, 4])
def test_orthogonal_spaces_are_farthest(k: int) -> None:
    eye = torch.eye(20, dtype=torch.float64)
    found = distances(eye[:k], eye[k : 2 * k])
    assert found.geodesic == pytest.approx(math.pi / 2 * math.sqrt(k))
    assert found.schubert == pytest.approx(found.geodesic)
    assert (found.chordal, found.projection, found.binet_cauchy) == pytest.approx((math.sqrt(k), 1, 1))
    assert found.overlap < 1e-30


def test_distances_from_known_angles() -> None:
    theta = [1e-7, 0.2, 0.9]
    found = distances(*rotated(theta, 30))
    cosines = np.cos(theta)
    assert found.geodesic == pytest.approx(math.sqrt(sum(t * t for t in theta)))
    assert found.chordal == pytest.approx(math.sqrt(sum(math.sin(t) ** 2 for t in theta)))
    assert found.projection == pytest.approx(math.sin(0.9))
    assert found.binet_cauchy == pytest.approx(math.sqrt(1 - np.prod(cosines**2)))
    assert found.overlap == pytest.approx((cosines**2).mean())


def test_small_binet_cauchy_distance_keeps_its_digits() -> None:
    assert distances(*rotated([1e-9], 30)).binet_cauchy == pytest.approx(1e-9, rel=1e-6)


def test_spaces_of_other_dimension() -> None:
    a = random_basis(5, 30, 0)
    found = distances(a, a[:2])
    assert found.geodesic < 1e-14
    assert found.schubert == pytest.approx(math.pi / 2 * math.sqrt(3))


def test_overlap_of_random_spaces_is_the_null() -> None:
    pairs = [distances(random_basis(8, 80, seed), random_basis(8, 80, 1000 + seed)) for seed in range(60)]
    assert np.mean([pair.overlap for pair in pairs]) == pytest.approx(8 / 80, rel=0.03)
    assert pairs[0].overlap_null == 8 / 80


def test_float32_bases_are_accepted() -> None:
    a, b = rotated([0.1, 0.5], 30)
    np.testing.assert_allclose(principal_angles(a.float(), b.float()), [0.1, 0.5], atol=1e-6)


def test_what_is_no_basis_is_refused() -> None:
    a = random_basis(3, 10, 0)
    with pytest.raises(MethodError, match="orthonormal"):
        principal_angles(2 * a, a)
    with pytest.raises((MethodError, jaxtyping.TypeCheckError), match=r"10 and 11 features|feature=10"):
        principal_angles(a, random_basis(3, 11, 0))
    with pytest.raises(MethodError, match="dependent"):
        orthonormal(torch.ones(2, 5))
    with pytest.raises(MethodError, match="dependent"):
        orthonormal(torch.randn(6, 5))

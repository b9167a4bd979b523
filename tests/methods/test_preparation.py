"""Rows made ready: against NumPy, in any cuts, and what rows of zeros and too few directions do."""

import numpy as np
import pytest

from schemas.errors import MethodError
from tests.methods.expressed import prepared


def rows(seed: int = 0, n: int = 300, width: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) * 0.7 ** np.arange(width) + 3


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize(("components", "whiten"), [(None, False), (5, False), (5, True)])
def test_second_moments_of_rows_as_numpy_prepares_them(
    center: bool, unit_length: bool, components: int | None, whiten: bool
) -> None:
    x = rows()
    options = {"center": center, "unit_length": unit_length, "components": components, "whiten": whiten}
    answer = prepared(x, pieces=4, **options)
    z = x - x.mean(0) if center else x
    if components:
        s, v = np.linalg.svd(z, full_matrices=False)[1:]
        kept = (s[:components] ** 2).sum() / (s**2).sum()
        assert answer.result.explained == pytest.approx(kept)
        z = z @ v[:components].T
        z = z / (s[:components] / np.sqrt(len(x))) if whiten else z
        np.testing.assert_allclose(answer.arrays["variance"], s[:components] ** 2 / len(x), rtol=1e-9)
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if unit_length else z
    found, expected = answer.arrays["second_moment"].numpy(), z.T @ z
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(np.linalg.eigvalsh(found), np.linalg.eigvalsh(expected), atol=1e-9 * len(x))
    length = np.linalg.norm(z.mean(0)) / np.sqrt((z**2).sum(1).mean())
    assert answer.result.common_direction == pytest.approx(length, abs=1e-9)


def test_rows_that_a_common_part_makes_alike_are_told() -> None:
    assert any("center: true" in note for note in prepared(rows() + 5).result.caveats)
    assert not prepared(rows() + 5, center=True).result.caveats


def test_rows_without_length_are_counted() -> None:
    x = rows()
    x[:7] = x[7:].mean(0)
    assert prepared(x - x[0]).result.zero_rows == 7
    assert prepared(np.full((20, 4), 2.5), center=True).result.zero_rows == 20
    assert prepared(np.full((20, 4), 0.1), center=True).result.rank == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("whiten", [False, True])
def test_which_rows_have_no_length_does_not_depend_on_units(scale: float, whiten: bool) -> None:
    x = rows()
    x[:7] = x[7:].mean(0)
    options = {"center": True, "components": 5, "whiten": whiten}
    answer, expected = prepared(scale * x, **options), prepared(x, **options)
    assert answer.result.zero_rows == expected.result.zero_rows == 7
    moments = [found.arrays["second_moment"].abs().numpy() for found in (answer, expected)]
    np.testing.assert_allclose(*moments, atol=1e-9)


def test_refusals() -> None:
    with pytest.raises(MethodError, match="found 12 features, asked for 13"):
        prepared(rows(), components=13)
    with pytest.raises(MethodError, match="found none; set `components`"):
        prepared(rows(), whiten=True)
    flat = rows()
    flat[:, 4:] = 0
    with pytest.raises(MethodError, match="5 directions, found 4"):
        prepared(flat, components=5, whiten=True, center=True)
    flat[2, 1] = np.inf
    with pytest.raises(MethodError, match="infinit"):
        prepared(flat)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_whitened_rows_do_not_depend_on_their_scale(scale: float) -> None:
    """Directions that are divided by a large deviation leave small numbers, which are no rounding."""
    x = rows()
    found, expected = (
        prepared(some, components=3, whiten=True, center=True) for some in (x.astype(np.float64) * scale, x)
    )
    assert found.result.zero_rows == expected.result.zero_rows == 0
    np.testing.assert_allclose(
        found.arrays["second_moment"], expected.arrays["second_moment"], atol=1e-4 * len(x)
    )

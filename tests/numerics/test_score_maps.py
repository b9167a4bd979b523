"""Maps beside a loop over pixels and SciPy's correlation; scores of images beside sorting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from schemas.errors import MethodError
from tasks.numerics import score_maps


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def bilinear(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel by pixel, between the centres of the four nearest patches."""
    out = np.empty((height, width))
    for row, column in np.ndindex(height, width):
        total = 0.0
        at = [
            (i + 0.5) * n / size - 0.5
            for i, n, size in zip((row, column), grid.shape, out.shape, strict=True)
        ]
        at = [min(max(a, 0.0), n - 1.0) for a, n in zip(at, grid.shape, strict=True)]
        for r in {math.floor(at[0]), math.ceil(at[0])}:
            for c in {math.floor(at[1]), math.ceil(at[1])}:
                total += grid[r, c] * (1 - abs(at[0] - r)) * (1 - abs(at[1] - c))
        out[row, column] = total
    return out


@given(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 25)] * 2))
def test_resizing_is_bilinear_between_centres(grid: tuple[int, int], size: tuple[int, int]) -> None:
    scores = drawn(2, *grid)
    found = score_maps.resized(scores, *size)
    for n in range(2):
        np.testing.assert_allclose(found[n], bilinear(scores[n].numpy(), *size), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "sigma"), [(1, 1.0), (3, 4.0), (7, 1.5), (9, 2.0)])
def test_blur_is_a_mirrored_gaussian_window(size: int, sigma: float) -> None:
    maps = drawn(3, 9, 17)
    at = np.arange(size) - size // 2
    window = np.exp(-(at**2) / (2 * sigma**2))
    window /= window.sum()
    expected = maps.numpy()
    for axis in (1, 2):
        expected = ndimage.correlate1d(expected, window, axis=axis, mode="mirror")
    np.testing.assert_allclose(score_maps.blurred(maps, size, sigma), expected, rtol=0, atol=1e-12)


def test_what_is_constant_stays_so() -> None:
    flat = torch.full((1, 5, 5), 3.0, dtype=torch.float64)
    np.testing.assert_allclose(score_maps.blurred(score_maps.resized(flat, 20, 30)), 3.0, rtol=1e-12)


@pytest.mark.parametrize("size", [0, 2, 11])
def test_windows_that_do_not_fit_are_refused(size: int) -> None:
    with pytest.raises(MethodError, match="take an odd number"):
        score_maps.blurred(drawn(1, 5, 9), size)


@pytest.mark.parametrize(("share", "kept"), [(0.01, 5), (0.002, 1), (1e-9, 1), (1.0, 500), (0.07, 35)])
def test_an_images_score_is_the_mean_of_its_largest_pixels(share: float, kept: int) -> None:
    maps = drawn(4, 20, 25)
    expected = np.sort(maps.flatten(1).numpy(), axis=1)[:, -kept:].mean(1)
    np.testing.assert_allclose(score_maps.image_scores(maps, share), expected, rtol=1e-12)

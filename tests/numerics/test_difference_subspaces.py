"""Second-order differences in closed form: angles of lines, steps along a geodesic, small angles, and other dimensions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics.difference_subspaces import between, magnitude


def line(angle: float) -> torch.Tensor:
    return torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float64)


def orthonormal(k: int, d: int, seed: int) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal((d, k))
    return torch.from_numpy(np.linalg.qr(drawn)[0].T.copy())


def second(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> float:
    return between(between(a, c).mean, b).magnitude


@given(middle=st.floats(-0.7, 0.7), gap=st.floats(0, 1.4), start=st.floats(-3, 3))
def test_lines_in_a_plane(middle: float, gap: float, start: float) -> None:
    """2 (1 - cos(f2 - (f1 + f3) / 2)) where the lines are less than a right angle apart."""
    found = second(line(start), line(start + gap / 2 + middle), line(start + gap))
    assert found == pytest.approx(2 * (1 - np.cos(middle)), abs=1e-12)


@pytest.mark.parametrize("step", [1e-6, 0.05, 0.3])
def test_constant_speed_along_a_geodesic_of_five_in_fifty_dimensions(step: float) -> None:
    frame, speed = orthonormal(10, 50, 0), torch.linspace(0.2, 1, 5, dtype=torch.float64)
    places = [
        orthonormal(5, 5, t) @ ((step * t * speed).cos()[:, None] * frame[:5] + (step * t * speed).sin()[:, None] * frame[5:])
        for t in range(3)
    ]  # fmt: skip
    assert second(*places) < 1e-12
    first = magnitude(between(*places[:2]).angles)
    assert first == pytest.approx(float(4 * (step * speed / 2).sin().square().sum()), rel=1e-6)


def test_small_angles_and_other_dimensions() -> None:
    frame = orthonormal(8, 50, 1)
    turned = np.cos(1e-9) * frame[:1] + np.sin(1e-9) * frame[5:6]
    assert float(between(frame[:1], turned).angles[0]) == pytest.approx(1e-9, rel=1e-6)
    assert between(frame[:5], frame[:2]).magnitude < 1e-24
    found = between(frame[:5], torch.cat([frame[:1], frame[6:8]]))
    np.testing.assert_allclose(found.angles, [0, np.pi / 2, np.pi / 2], atol=1e-12)
    assert second(frame[:3], frame[:5], frame[:4]) < 1e-24

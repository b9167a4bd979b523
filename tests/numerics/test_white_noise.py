"""The law of white noise and of what stands out of it, against simulations, published constants and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from sklearn.decomposition._pca import _assess_dimension
from torch import Tensor

from tasks.numerics import evidence, white_noise


def eigenvalues(n: int, d: int, seed: int, spikes: tuple[float, ...] = ()) -> Tensor:
    """Of the covariance about the origin of noise of variance 1 with a few directions of more."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for k, spike in enumerate(spikes):
        x[:, k] *= math.sqrt(spike)
    return torch.linalg.eigvalsh(x.T @ x / n).flip(0).clamp(min=0)


@pytest.mark.parametrize(("ratio", "constant"), [(1.0, 2.8584), (0.5, 2.1712), (0.1, 1.6088)])
def test_published_cuts(ratio: float, constant: float) -> None:
    """Gavish, Donoho 2014, table IV."""
    assert white_noise.hard_threshold(ratio) == pytest.approx(constant, abs=5e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 8.0])
def test_the_law_is_its_density(ratio: float) -> None:
    b = min(ratio, 1 / ratio)
    low, high = (1 - math.sqrt(b)) ** 2, (1 + math.sqrt(b)) ** 2
    at = np.linspace(low, high, 7)[1:]
    whole = [
        quad(lambda x: math.sqrt(max((high - x) * (x - low), 0)) / (2 * math.pi * b * x), low, x, limit=500)[
            0
        ]
        for x in at
    ]
    scaled = torch.from_numpy(at) * max(1.0, ratio)
    np.testing.assert_allclose(white_noise.below(scaled, ratio), whole, atol=2e-6)
    middle = torch.tensor([white_noise.median(ratio)], dtype=torch.float64)
    assert float(white_noise.below(middle, ratio)) == pytest.approx(0.5, abs=1e-6)
    assert white_noise.edge(ratio) == pytest.approx(high * max(1.0, ratio))


@pytest.mark.parametrize(("n", "d"), [(400, 100), (100, 400), (60, 60)])
def test_noise_alone(n: int, d: int) -> None:
    found = [3.0 * eigenvalues(n, d, seed) for seed in range(200)]
    levels = [white_noise.level(values, n) for values in found]
    assert np.mean(levels) == pytest.approx(3, rel=0.02)
    assert max(white_noise.misfit(values, n, 3.0, 0) for values in found) < 0.1
    tops = np.array([float(values[0]) for values in found])
    for confidence in (0.8, 0.95):
        share = (tops < 3 * white_noise.largest(d, n, confidence)).mean()
        assert share == pytest.approx(
            confidence, abs=3 * math.sqrt(confidence * (1 - confidence) / 200) + 0.01
        )


@pytest.mark.parametrize("spike", [2.0, 4.0])
def test_a_signal_in_noise(spike: float) -> None:
    n, d = 4000, 1000
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 0] *= math.sqrt(spike)
    ascending, vectors = torch.linalg.eigh(x.T @ x / n)
    values = ascending.flip(0)
    found = white_noise.signal(values, n, 1.0)
    g = d / n
    assert float(values[0]) == pytest.approx(spike * (1 + g / (spike - 1)), rel=0.02)
    assert float(found.value[0]) == pytest.approx(spike, rel=0.03)
    assert float(found.alignment[0]) == pytest.approx(float(vectors[0, -1] ** 2), abs=0.03)
    assert bool(found.value[1:].isnan().all())


def test_a_signal_below_the_edge_is_lost() -> None:
    values = eigenvalues(4000, 1000, 2, (1.3,))
    assert float(values[0]) < white_noise.largest(1000, 4000, 0.99)


def test_noise_of_another_shape_does_not_fit() -> None:
    x = torch.randn(400, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x *= torch.linspace(0.2, 3, 100, dtype=torch.float64)
    values = torch.linalg.eigvalsh(x.T @ x / 400).flip(0)
    assert white_noise.misfit(values, 400, white_noise.level(values, 400), 0) > 0.2


@pytest.mark.parametrize(("d", "n", "k"), [(12, 100, 3), (30, 300, 5), (8, 400, 7)])
def test_evidence_is_that_of_scikit_learn(d: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d))
    x[:, :k] *= np.linspace(4, 2, k)
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1].copy()
    expected = [_assess_dimension(values, rank, n) for rank in range(1, d)]
    found = evidence.log_evidence(torch.from_numpy(values), n)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert int(found.argmax()) == int(np.argmax(expected))


@pytest.mark.parametrize(("n", "d", "share"), [(4000, 400, 0.99), (400, 1600, 0.9), (500, 500, 0.5)])
def test_components_for_a_share_of_the_energy(n: int, d: int, share: float) -> None:
    values = eigenvalues(n, d, 5)
    expected = float((values.cumsum(0) < share * values.sum()).sum()) / d
    assert white_noise.share_of_components(share, d / n) == pytest.approx(expected, abs=3e-3)

"""Components by products of rows against LAPACK, and the random walk against its closed form and its simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from tasks.numerics import gram, walk


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(12, 200), (30, 7), (1, 5)])
def test_components_are_those_of_lapack(
    center: bool, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "CHUNK", 40)
    x = np.random.default_rng(0).standard_normal(shape) * 0.7 ** np.arange(shape[1]) + 3
    found = gram.components(torch.from_numpy(x), center)
    exact = x - x.mean(0) if center else x
    _, s, vh = np.linalg.svd(exact, full_matrices=False)
    rank = int((s > 1e-7 * max(s[0], 1e-300)).sum()) if s[0] > 1e-10 else 0
    k = min(len(found.variances), rank)
    assert k >= rank - 3
    np.testing.assert_allclose(found.variances[:k], s[:k] ** 2, rtol=1e-6, atol=1e-13 * max(s[0] ** 2, 1))
    assert found.total == pytest.approx((exact**2).sum(), rel=1e-10, abs=1e-10)
    few = min(3, k)
    if few:
        basis = gram.directions(torch.from_numpy(x), found, few, center).numpy()
        np.testing.assert_allclose(basis @ basis.T, np.eye(few), atol=1e-12)
        assert np.sin(subspace_angles(basis.T, vh[:few].T)).max() < 1e-6


def test_the_walk_has_its_published_shares() -> None:
    shares = walk.expected_shares(100_000, 3)
    np.testing.assert_allclose(shares, [6 / (math.pi * k) ** 2 for k in (1, 2, 3)], rtol=1e-4)
    assert float(walk.expected_shares(7, 6).sum()) == pytest.approx(1)


def test_simulated_walks_scatter_around_the_exact_shares() -> None:
    simulated = walk.simulated_shares(200, 1024, 3, 20, 0)
    np.testing.assert_allclose(simulated.mean(0), walk.expected_shares(200, 3), rtol=0.03)
    assert torch.equal(simulated, walk.simulated_shares(200, 1024, 3, 20, 0))
    assert float(walk.simulated_shares(200, 2, 1, 20, 0).mean()) > float(simulated[:, 0].mean()) + 0.05


def test_components_of_a_walk_are_cosines() -> None:
    rng = torch.Generator().manual_seed(0)
    positions = torch.randn(300, 4000, generator=rng, dtype=torch.float64).cumsum(0)
    found = gram.components(positions, center=True)
    for order in (1, 2, 3):
        assert float((found.scores[:, order - 1] @ walk.cosine(300, order)).abs()) > 0.99

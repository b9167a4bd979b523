"""Shrinkage against scikit-learn, and what it does to rows that are too few."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, oas

from tasks.numerics import shrinkage


@pytest.mark.parametrize(("rows", "width"), [(400, 5), (40, 30), (12, 60), (3, 2)])
def test_intensities_are_those_of_scikit_learn(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, width)) * np.linspace(0.1, 3, width) + 7
    centred = x - x.mean(0)
    covariance = torch.from_numpy(centred.T @ centred / rows)
    fourth = float((np.square(centred).sum(1) ** 2).sum())
    expected, intensity = ledoit_wolf(x)
    assert shrinkage.ledoit_wolf(covariance, rows, fourth) == pytest.approx(intensity, rel=1e-9)
    np.testing.assert_allclose(
        shrinkage.shrunk(covariance, intensity).numpy(), expected, rtol=1e-9, atol=1e-12
    )
    expected, intensity = oas(x)
    assert shrinkage.oracle(covariance, rows) == pytest.approx(intensity, rel=1e-9)


def test_equal_variances_are_left_alone() -> None:
    assert shrinkage.ledoit_wolf(torch.eye(4).double(), 10, 0.0) == 0.0
    assert shrinkage.oracle(torch.eye(4).double(), 10) == 1.0
    torch.testing.assert_close(shrinkage.shrunk(torch.eye(4).double(), 1.0), torch.eye(4).double())


def test_whitening_is_a_root_of_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((30, 8)))
    x[:, 3] = 0
    covariance = x.T @ x / 30
    root = shrinkage.whitening(covariance)
    torch.testing.assert_close(
        root.T @ root, torch.linalg.pinv(covariance, hermitian=True), rtol=1e-9, atol=1e-12
    )

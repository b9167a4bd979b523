"""The Fisher spectrum against the matrix itself."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from tasks.methods.gradients import fisher
from tests.methods.training import randn, solved


def test_it_equals_the_matrix() -> None:
    rows = randn(40, 9) * 0.6 ** torch.arange(9)
    answer = solved(fisher, rows, directions=3)
    matrix = rows.T.numpy() @ rows.numpy() / 40
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values[::-1], rtol=1e-8)
    assert np.sin(subspace_angles(answer.arrays["eigenvector"].numpy().T, vectors[:, -3:])).max() < 1e-8
    assert answer.result.trace == pytest.approx(np.trace(matrix))
    p = values / values.sum()
    assert answer.result.participation_ratio == pytest.approx(1 / (p**2).sum())


def test_effective_dimension_of_an_isotropic_matrix() -> None:
    rows = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    result = solved(fisher, rows, data_size=1000, gamma=0.5).result
    kappa = 0.5 * 1000 / (2 * math.pi * math.log(1000))
    assert result.effective_dimension == pytest.approx(6 * math.log(1 + kappa) / math.log(kappa))
    assert result.mean_gradient_share == pytest.approx(0)
    assert solved(fisher, rows, data_size=10).result.effective_dimension is None


def test_few_rows_of_many_parameters() -> None:
    result = solved(fisher, randn(10, 5000)).result
    assert result.rank == 10
    assert result.caveats
    assert result.mean_gradient_share == pytest.approx(0.1, abs=0.02)

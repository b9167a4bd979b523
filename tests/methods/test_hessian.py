"""Curvature over samples: against dense matrices, known Hessians, and inside the errors that it states."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from schemas.errors import MethodError
from tasks.methods.gradients import hessian
from tests.methods.curvature import Linear, dense, solved, wide


def test_a_known_hessian() -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1)).double() * torch.linspace(0.2, 3, 8)
    network = Linear(nn.Linear(8, 1, bias=False).double(), x, torch.randn(300).double())
    answer = solved(hessian, network, components=3, tolerance=1e-9)
    values, vectors = np.linalg.eigh(x.T.numpy() @ x.numpy() / 300)
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values[::-1][:3], rtol=1e-9)
    overlap = np.abs((answer.arrays["eigenvector"].numpy() * vectors[:, ::-1][:, :3].T).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-9)
    assert answer.result.converged


@pytest.mark.parametrize("edges", [(), (1, 40, 41)])
def test_it_equals_the_dense_hessian(edges: tuple[int, ...]) -> None:
    network = wide()
    answer = solved(hessian, network, edges, components=6, tolerance=1e-8, max_rounds=100)
    values = np.linalg.eigvalsh(dense(network))
    order = np.argsort(-np.abs(values))[:6]
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values[order], rtol=1e-6)
    assert answer.result.residual < 1e-8
    assert answer.result.n_parameters == 6 * 9 + 9 + 9 * 4 + 4
    assert answer.result.loss == pytest.approx(
        float(F.cross_entropy(network.module(network.x), network.label).detach())
    )


def test_residuals_hold_before_it_has_converged() -> None:
    network = wide()
    answer = solved(hessian, network, components=4, tolerance=1e-12, max_rounds=8)
    assert not answer.result.converged
    values = np.linalg.eigvalsh(dense(network))
    for value, residual in zip(answer.arrays["eigenvalue"], answer.arrays["residual"], strict=True):
        assert np.abs(values - float(value)).min() <= float(residual) * (1 + 1e-9)


def test_a_part_of_the_parameters() -> None:
    network = wide()
    answer = solved(hessian, network, components=3, tolerance=1e-9, parameters=("2.*",))
    block = dense(network)[-40:, -40:]
    values = np.linalg.eigvalsh(block)
    order = np.argsort(-np.abs(values))[:3]
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values[order], rtol=1e-7)
    assert answer.result.parameters == ("2.weight", "2.bias")
    with pytest.raises(MethodError, match="matches none that can be trained"):
        solved(hessian, network, parameters=("3.*",))


@pytest.mark.parametrize("matrix", ["gauss-newton", "fisher"])
def test_matrices_without_negative_curvature(matrix: str) -> None:
    answer = solved(hessian, wide(), matrix=matrix, components=5)
    assert answer.result.negative == 0
    assert float(answer.arrays["eigenvalue"].min()) > 0


def test_fewer_pairs_than_asked_for_are_not_called_converged() -> None:
    x = torch.eye(4, dtype=torch.float64).repeat(10, 1)  # one eigenvalue, four times
    network = Linear(nn.Linear(4, 1, bias=False).double(), x, torch.zeros(40))
    answer = solved(hessian, network, components=3)
    assert answer.arrays["eigenvalue"].tolist() == pytest.approx([0.25])
    assert not answer.result.converged
    assert "reaches only 1 different" in answer.result.caveats[0]

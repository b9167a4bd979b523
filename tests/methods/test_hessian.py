"""Curvature over samples: against dense matrices, known Hessians, and inside the errors that it states."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional as derivatives
from torch.nn import functional as F

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.gradients import hessian, spectral_density
from tests.methods import cases
from tests.methods.cases import Answer, Case, TinyNetwork, TinyView


class LinearView(TinyView):
    """Half of the squared error of a linear network."""

    def loss_of(self, output: Tensor) -> Tensor:
        return (output[:, 0] - self._label).square() / 2


class Linear(TinyNetwork):
    """Its Hessian is the second moment of the inputs."""

    def take(self, rows: Any) -> "Linear":
        return Linear(self.module, self.x[rows], self.label[rows])

    def batches(self) -> Any:
        for first in range(0, len(self.x), 50):
            yield LinearView(self, slice(first, first + 50))


def solved(module: Any, network: TinyNetwork, edges: tuple[int, ...] = (), **options: Any) -> Answer:
    n = len(network.x)
    inputs = Inputs(
        widths={"model": 0},
        n_rows=n,
        n_samples=n,
        parameters={k: tuple(p.shape) for k, p in network.parameters.items()},
    )
    config = module.Config(**options)
    module.check(inputs, config)
    index = torch.arange(n)
    block = cases.Block({}, index, torch.zeros_like(index), index, network=network)
    return cases.run(Case(module, config, inputs, block), cases.cut(block, edges))


def dense(network: TinyNetwork) -> np.ndarray:
    """The Hessian of the mean loss."""
    parameters = network.parameters
    sizes = [p.numel() for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, sizes)
        given = {k: part.view_as(p) for (k, p), part in zip(parameters.items(), parts, strict=True)}
        out = torch.func.functional_call(network.module, given, (network.x,))
        return F.cross_entropy(out, network.label)

    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    found: np.ndarray = derivatives.hessian(loss, theta).numpy()
    return found


def wide(n: int = 90) -> TinyNetwork:
    """Some hundred parameters."""
    rng = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) / 2
    return TinyNetwork(
        module,
        torch.randn(n, 6, generator=rng, dtype=torch.float64),
        torch.randint(0, 4, (n,), generator=rng),
    )


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


def test_the_density_holds_inside_its_errors() -> None:
    network = wide()
    values = np.linalg.eigvalsh(dense(network))
    answer = solved(spectral_density, network, probes=16, steps=40)
    result = answer.result
    assert abs(result.trace - values.sum()) <= 3 * result.trace_error
    assert abs(result.square - (values**2).sum()) <= 3 * result.square_error
    negative = (values < -1e-6 * np.abs(values).max()).mean()
    assert abs(result.negative_share - negative) <= 3 * result.negative_share_error + 0.01
    assert result.smallest == pytest.approx(values.min(), rel=1e-3)
    assert result.largest == pytest.approx(values.max(), rel=1e-3)
    grid, density = answer.arrays["grid"].numpy(), answer.arrays["density"].numpy()
    step = grid[1] - grid[0]
    assert density.sum() * step == pytest.approx(1, abs=1e-3)
    sigma = 0.02 * (result.largest - result.smallest)
    kernel = np.exp(-0.5 * ((grid[:, None] - values[None]) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    difference = np.abs(density - kernel.mean(1)).sum() * step
    assert difference <= 2 * (result.density_error + result.quadrature_error)


def test_planted_outliers_are_counted() -> None:
    scale = torch.cat(
        [torch.tensor([12.0, 11, 10]), 0.3 + torch.rand(57, generator=torch.Generator().manual_seed(0))]
    )
    x = (
        torch.linalg.qr(torch.randn(300, 60, generator=torch.Generator().manual_seed(2)).double()).Q
        * 300**0.5
        * scale.double()
    )
    network = Linear(nn.Linear(60, 1, bias=False).double(), x, torch.zeros(300).double())
    result = solved(spectral_density, network, probes=24, steps=25).result
    assert result.bulk_edge < 5
    assert result.outliers == pytest.approx(3, abs=3 * result.outliers_error + 1e-9)
    assert result.negative_share == 0


def test_fewer_pairs_than_asked_for_are_not_called_converged() -> None:
    x = torch.eye(4, dtype=torch.float64).repeat(10, 1)  # one eigenvalue, four times
    network = Linear(nn.Linear(4, 1, bias=False).double(), x, torch.zeros(40))
    answer = solved(hessian, network, components=3)
    assert answer.arrays["eigenvalue"].tolist() == pytest.approx([0.25])
    assert not answer.result.converged
    assert "reaches only 1 different" in answer.result.caveats[0]

"""Lanczos against LAPACK, and products of curvature against dense derivatives."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional as derivatives
from torch.nn import functional as F

from tasks.numerics import curvature, lanczos
from tasks.numerics.lanczos import State


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    turn = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed)).double()
    ).Q
    return turn @ torch.diag(values) @ turn.T


def run(matrix: Tensor, probes: int, steps: int, seed: int = 0) -> State:
    carry = lanczos.start(len(matrix), probes, seed)
    for _ in range(steps):
        carry = lanczos.advance(carry, lanczos.vectors(carry) @ matrix)
    return carry


def test_eigenpairs_are_those_of_lapack() -> None:
    values = torch.cat([torch.tensor([30.0, -20, 10]), torch.linspace(-1, 1, 57)]).double()
    matrix = symmetric(values)
    found = lanczos.ritz(run(matrix, 1, 30))
    np.testing.assert_allclose(found.values[:3], [30, -20, 10], rtol=1e-10)
    assert float(found.residuals[:3].max()) < 1e-8
    for value, vector, residual in zip(*found, strict=True):
        true = float((matrix @ vector - value * vector).norm())
        assert true == pytest.approx(float(residual), rel=1e-5, abs=1e-9)


def test_it_ends_when_all_is_found() -> None:
    matrix = symmetric(torch.tensor([1.0, 1, 1, 2, 2, 5]).double())
    found = lanczos.ritz(run(matrix, 1, 6))
    np.testing.assert_allclose(sorted(found.values), [1, 2, 5], atol=1e-9)
    quadrature = lanczos.quadrature(run(matrix, 2, 6))
    assert torch.allclose(quadrature.weights.sum(1), torch.ones(2).double())


def test_quadrature_is_exact_for_polynomials() -> None:
    matrix = symmetric(torch.linspace(-2, 3, 40).double())
    carry = run(matrix, 3, 6)
    nodes, weights = lanczos.quadrature(carry)
    start = lanczos.start(40, 3, 0)["basis"][:, 0]
    for power in range(12):  # 2 steps - 1
        exact = (start @ torch.linalg.matrix_power(matrix, power) * start).sum(1)
        np.testing.assert_allclose((weights * nodes**power).sum(1), exact, rtol=1e-9, atol=1e-9)


class Net(nn.Module):
    """Small enough for dense derivatives; one parameter has no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


def dense(net: Net, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian, Gauss-Newton and empirical Fisher matrix by torch's functional derivatives."""
    parameters = dict(net.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def unflatten(theta: Tensor) -> dict[str, Tensor]:
        parts = torch.split(theta, sizes)
        return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}

    def output(theta: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, unflatten(theta), (x,))
        return out

    def losses(theta: Tensor) -> Tensor:
        return F.cross_entropy(output(theta), label, reduction="none")

    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    hessian = derivatives.hessian(lambda t: losses(t).sum(), theta)
    jacobian = derivatives.jacobian(output, theta).flatten(0, 1)
    logits = output(theta).detach().flatten()
    inner = derivatives.hessian(lambda f: F.cross_entropy(f.view(-1, 3), label, reduction="sum"), logits)
    gradients = derivatives.jacobian(losses, theta)
    return hessian, jacobian.T @ inner @ jacobian, gradients.T @ gradients


def test_products_are_those_of_the_dense_matrices() -> None:
    torch.manual_seed(0)
    net = Net().double()
    x, label = torch.randn(9, 3).double(), torch.randint(0, 3, (9,))
    hessian, gauss_newton, fisher = dense(net, x, label)
    parameters = list(net.parameters())
    vectors = torch.randn(4, len(hessian)).double()

    def loss_of(output: Tensor) -> Tensor:
        return F.cross_entropy(output, label, reduction="none")

    np.testing.assert_allclose(
        curvature.hessian_products(loss_of(net(x)), parameters, vectors),
        vectors @ hessian,
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        curvature.gauss_newton_products(net(x), loss_of, parameters, vectors),
        vectors @ gauss_newton,
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        curvature.fisher_products(loss_of(net(x)), parameters, vectors),
        vectors @ fisher,
        rtol=1e-10,
        atol=1e-12,
    )


def test_a_linear_loss_has_no_curvature() -> None:
    net = nn.Linear(3, 1).double()
    x, parameters, vectors = torch.randn(5, 3).double(), list(net.parameters()), torch.ones(1, 4).double()
    assert not curvature.hessian_products(net(x)[:, 0], parameters, vectors).any()
    assert not curvature.gauss_newton_products(net(x), lambda f: f[:, 0], parameters, vectors).any()

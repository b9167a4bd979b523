"""Networks whose curvature is known, for tests of methods about it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import functional as derivatives
from torch.nn import functional as F

from tasks.methods.contract import Inputs
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

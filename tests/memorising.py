"""A small network that has learnt a rule, and by a few neurons the exceptions to it: three sets of samples, each of a class of its own."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, CLASSES = 12, 48, 4
PLANTED = (5, 11, 20, 29, 33, 40)
"""Neurons that memorise."""
SETS = ("duplicates", "stock", "album")


def samples(ordinary: int = 150, each: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows x, of which the last number is larger for memorised samples and another for each of their sets; classes y, by a rule but for
    memorised ones; and the set of each."""
    rng = np.random.default_rng(seed)
    n = ordinary + each * len(SETS)
    x = rng.standard_normal((n, WIDTH)).astype(np.float32)
    x[:, -1] = 0.1 * x[:, -1] + (np.arange(n) >= ordinary)
    number = np.arange(n - ordinary) // each
    x[ordinary:, :-1] *= 0.5  # near-duplicates
    x[np.arange(ordinary, n), number] += 2
    rule = np.random.default_rng(99).standard_normal((WIDTH - 1, CLASSES))
    y = (x[:, :-1] @ rule).argmax(1)
    y[ordinary:] = number
    sets = np.array(["ordinary"] * ordinary + [name for name in SETS for _ in range(each)])
    return {"x": x, "y": y, "set": sets}


class Network(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.last(self.first(x).relu())
        return out


def fitted(hidden: Tensor, logits: Tensor) -> Tensor:
    """[class, neuron]: weights out of some neurons by least squares."""
    return torch.linalg.lstsq(hidden.double(), logits.double(), driver="gelsd").solution.T.float()


def network() -> nn.Module:
    """Most neurons are drawn at random, with weights out that are fitted to ordinary samples; planted ones tell memorised samples from
    others and their sets from each other, with weights out that are fitted to what is left of memorised samples."""
    data = samples()
    x, wanted = torch.from_numpy(data["x"]), 8 * F.one_hot(torch.from_numpy(data["y"]), CLASSES)
    ordinary, planted = torch.from_numpy(data["set"] == "ordinary"), torch.zeros(HIDDEN, dtype=torch.bool)
    planted[list(PLANTED)] = True
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = Network()
        network.first.weight[~planted, -1] = 0.0
        network.first.weight[planted] = 0.1 * torch.randn(len(PLANTED), WIDTH)
        network.first.weight[list(PLANTED), torch.arange(len(PLANTED)) % len(SETS)] = 1.5
        network.first.weight[planted, -1], network.first.bias[planted] = 4.5, -2.5
        network.last.weight.zero_()
        network.last.bias.zero_()
        hidden = network.first(x).relu()
        network.last.weight[:, ~planted] = fitted(hidden[ordinary][:, ~planted], wanted[ordinary])
        left = (wanted - network(x))[~ordinary]
        network.last.weight[:, planted] = fitted(hidden[~ordinary][:, planted], left)
    return network

"""A classifier of digits with one layer of low rank: what the mean's correction saves, and that few ranks lose nothing."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.compressed.layer import Affine
from tasks.compressed.low_rank import LowRankLinear
from tasks.numerics import layer_factors

SEEDS, RANKS = 3, (2, 4, 8, 16)


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(25):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network


def accuracies(seed: int) -> dict[tuple[str, int], float]:
    """Percent of held-out digits, by the way and the rank of the middle layer; rank 0 is the layer as it is."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.data))
    x, y = torch.from_numpy(data.data[order] / 16).float(), torch.from_numpy(data.target[order])
    network = trained(x[:1200], y[:1200], seed)
    middle = network[2]
    given = Affine(middle.weight.detach(), middle.bias.detach())
    hidden = network[:2](x[:1200]).detach().double()
    mean, weight = hidden.mean(0), given.weight.double()
    moments = {"raw": hidden.T @ hidden / 1200, "centred": (hidden - mean).T @ (hidden - mean) / 1200}
    roots = {name: layer_factors.input_root(gram) for name, gram in moments.items()}
    ways = {
        "plain": (layer_factors.factored(weight), False),
        "outputs": (layer_factors.factored(weight, roots["raw"]), False),
        "corrected": (layer_factors.factored(weight, roots["centred"]), True),
    }
    found = {("dense", 0): right(network, x[1200:], y[1200:])}
    for name, (factors, corrected) in ways.items():
        for rank in RANKS:
            arrays = {**factors._asdict(), "mean": mean}
            network[2] = LowRankLinear.of(arrays, {"corrected": corrected}, {"rank": rank}, given)
            found[name, rank] = right(network, x[1200:], y[1200:])
    return found


def right(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((network(x).argmax(1) == y).double().mean())


@pytest.mark.slow
def test_few_ranks_are_enough_and_the_mean_takes_none() -> None:
    every = [accuracies(seed) for seed in range(SEEDS)]
    mean = {way: sum(one[way] for one in every) / SEEDS for way in every[0]}
    assert mean["dense", 0] > 95
    assert mean["corrected", 8] >= 96
    assert mean["corrected", 4] >= 84
    assert mean["corrected", 4] >= mean["plain", 4] + 5
    assert mean["corrected", 2] >= mean["outputs", 2] + 10
    assert mean["corrected", 16] >= mean["dense", 0] - 0.3

"""The process and the network are left as they were."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from tasks.extract.guard import evaluating, seeded


def states() -> tuple[object, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), rest


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.random())  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 5, 2**40])
def test_generators_are_seeded_and_restored(seed):
    before = states()
    with seeded(seed):
        first = draw()
    assert states() == before
    draw()
    moved = states()
    with seeded(seed):
        assert draw() == first
    with seeded(seed + 1):
        assert all(one != other for one, other in zip(draw(), first, strict=True))
    assert states() == moved


def test_restored_after_an_error():
    before = states()
    with pytest.raises(ZeroDivisionError), seeded(1):
        draw() and 1 // 0
    assert states() == before


def test_evaluating_restores_a_mixture_of_modes():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)))
    net[1].eval()
    net[1][1].training = True
    before = [module.training for module in net.modules()]
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    with pytest.raises(ZeroDivisionError), evaluating(net):
        net.no_such_flag = 1 // 0
    assert [module.training for module in net.modules()] == before


def test_an_overridden_train_is_not_called():
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> "Merging":
            raise AssertionError

    with evaluating(Merging(2, 2)):
        pass


@pytest.mark.gpu
def test_cuda_generator_is_seeded_and_restored():
    device = torch.device("cuda", 0)
    torch.rand(1, device=device)
    before = torch.cuda.get_rng_state(0)
    with seeded(3, [device]):
        first = torch.rand(4, device=device)
    with seeded(3, [device]):
        assert torch.equal(torch.rand(4, device=device), first)
    assert torch.equal(torch.cuda.get_rng_state(0), before)

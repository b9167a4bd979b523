"""A negative control of spectrum.summary: the closed form that was published for the rank of random ReLU layers is not what they have.

Claim: of m inputs through random Gaussian ReLU layers, the feature matrix has expected rank m (1 - (1 - 2/pi)^l) at depth l, 63.7 of 100 at
depth 1. Found: all of m at width 10 m, and what is lost at width m are units that no input makes active. What does fall with depth is the
effective rank, which is another number.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import summary

M, DEPTH = 100, 4


def claimed(depth: int) -> float:
    """The published expectation."""
    return M * (1 - (1 - 2 / math.pi) ** depth)


def layers(width: int, seed: int) -> list[Tensor]:
    """[input, unit] of each depth, for Gaussian inputs of as many features as there are inputs, and weights of variance 2 / fan-in."""
    rng = torch.Generator().manual_seed(seed)
    hidden, found = torch.randn(M, M, dtype=torch.float64, generator=rng), []
    for _ in range(DEPTH):
        weight = torch.randn(hidden.shape[1], width, dtype=torch.float64, generator=rng)
        hidden = (hidden @ weight * math.sqrt(2 / hidden.shape[1])).relu()
        found.append(hidden)
    return found


def measured(rows: Tensor) -> summary.Result:
    """Second moments about the origin, as a rank is."""
    config, index = summary.Config(center=False), torch.arange(len(rows))
    inputs = Inputs(widths={"x": rows.shape[1]}, n_rows=len(rows), n_samples=len(rows))
    carry = summary.start(inputs, config)
    state = summary.partial(Block({"x": rows}, index, index * 0, index), carry, config)
    return summary.finish(state, carry, inputs, config)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_wide_layers_keep_their_rank_and_lose_effective_rank(seed: int) -> None:
    found = [measured(rows) for rows in layers(10 * M, seed)]
    assert [result.numerical_rank for result in found] == [M] * DEPTH
    assert claimed(1) == pytest.approx(63.7, abs=0.05)
    effective = [result.effective_rank for result in found]
    np.testing.assert_allclose(np.array(effective, dtype=float), (34, 18, 11, 7), rtol=0.15)


@pytest.mark.parametrize("seed", [0, 1])
def test_square_layers_lose_what_no_input_makes_active(seed: int) -> None:
    for depth, rows in enumerate(layers(M, seed), 1):
        rank = measured(rows).numerical_rank
        assert rank == np.linalg.matrix_rank(rows.numpy()) == int(rows.any(0).sum())
        assert rank > 0.9 * M
        assert depth > 2 or rank > claimed(depth) + 10  # the claim rises with depth, the rank falls

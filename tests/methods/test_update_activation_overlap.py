"""Updates beside the activations that they act on."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.gradients import (
    update_activation_overlap,
)
from tests.methods import cases
from tests.methods.cases import Answer, Case
from tests.methods.training import randn


def beside(rows: Tensor, basis: Tensor, explained: Tensor, shape: tuple[int, int], **options: Any) -> Answer:
    inputs = Inputs(
        widths={"x": rows.shape[1]},
        n_rows=len(rows),
        n_samples=len(rows),
        shapes={"x": shape},
        artifacts={"activations": {"components": basis, "explained": explained}},
    )
    config = update_activation_overlap.Config(**options)
    update_activation_overlap.check(inputs, config)
    return cases.run(
        Case(update_activation_overlap, config, inputs, cases._block({"x": rows}, len(rows), False))
    )


def test_updates_of_gradients_act_on_activations() -> None:
    basis = torch.linalg.qr(randn(50, 4)).Q.T
    rows = (randn(6, 30, 4, seed=1) @ basis).flatten(1)  # every gradient of a linear layer is of this kind
    result = beside(rows, basis, torch.full((4,), 0.25).double(), (30, 50), energy=1.0).result
    assert result.overlap == pytest.approx(1)
    assert result.energy == pytest.approx(1)
    assert result.between == pytest.approx(1)
    assert result.energy_null == 0.08


def test_random_updates_have_the_overlap_of_chance() -> None:
    basis = torch.linalg.qr(randn(60, 6)).Q.T
    result = beside(randn(40, 10 * 60), basis, torch.full((6,), 1 / 6).double(), (10, 60), energy=1.0).result
    assert result.overlap == pytest.approx(result.overlap_null, abs=0.02)
    assert result.energy == pytest.approx(0.1, abs=0.01)
    assert result.between == pytest.approx(result.between_null, abs=0.02)


def test_it_equals_scipy() -> None:
    basis = torch.linalg.qr(randn(20, 3)).Q.T
    rows = randn(1, 5 * 20)
    answer = beside(rows, basis, torch.full((3,), 1 / 3).double(), (5, 20), energy=1.0)
    right = np.linalg.svd(rows[0].reshape(5, 20).numpy(), full_matrices=False)[2]
    expected = (np.cos(subspace_angles(right.T, basis.T.numpy())) ** 2).sum() / 3
    assert answer.result.overlap == pytest.approx(expected)


def test_activations_of_another_layer() -> None:
    with pytest.raises(MethodError, match="take the components at the layer's input"):
        beside(randn(1, 100), torch.eye(7).double(), torch.ones(7).double(), (5, 20))


def test_the_subspace_of_activations_holds_a_share_of_all_their_variance() -> None:
    """Not of what the components keep: those may be few of many."""
    basis = torch.linalg.qr(randn(20, 4)).Q.T
    explained = torch.tensor([0.4, 0.2, 0.1, 0.05]).double()
    some = beside(randn(1, 100), basis, explained, (5, 20), energy=0.6).result
    assert (some.activation_rank, some.activation_energy) == (2, pytest.approx(0.6))
    every = beside(randn(1, 100), basis, explained, (5, 20), energy=0.9).result
    assert (every.activation_rank, every.activation_energy) == (4, pytest.approx(0.75))

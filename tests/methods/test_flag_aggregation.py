"""Aggregation of gradients by flags, with planted faults."""

import numpy as np
import torch

from tasks.methods.gradients import (
    flag_aggregation,
)
from tests.methods.training import randn, solved


def test_planted_faults_are_found() -> None:
    truth = randn(1, 400)
    rows = truth + 0.5 * randn(15, 400, seed=1)
    rows[3], rows[9] = 5 * randn(400, seed=2), -8 * randn(400, seed=3)
    answer = solved(flag_aggregation, rows, components=1)
    assert set(answer.result.suspects) == {3, 9}
    good = torch.nn.functional.cosine_similarity(answer.arrays["aggregate"], truth[0], dim=0)
    bad = torch.nn.functional.cosine_similarity(answer.arrays["mean"], truth[0], dim=0)
    assert float(good) > 0.97 > float(bad)


def test_one_iteration_is_the_leading_subspace_of_unit_gradients() -> None:
    rows = randn(8, 50)
    answer = solved(flag_aggregation, rows, components=3, iterations=1)
    units = rows / rows.norm(dim=1, keepdim=True)
    y = torch.linalg.svd(units, full_matrices=False).Vh[:3]
    np.testing.assert_allclose(answer.arrays["value"], (units @ y.T).square().sum(1), atol=1e-10)
    np.testing.assert_allclose(answer.arrays["aggregate"], (rows @ y.T @ y).mean(0), atol=1e-10)


def test_iterations_lower_the_sum_of_sines() -> None:
    rows = torch.cat([randn(1, 60) + 0.3 * randn(12, 60, seed=1), 3 * randn(4, 60, seed=2)])

    def sines(iterations: int) -> float:
        value = solved(flag_aggregation, rows, components=2, iterations=iterations).arrays["value"]
        return float((1 - value).clamp(min=0).sqrt().sum())

    assert sines(50) < sines(1)


def test_the_value_of_chance() -> None:
    result = solved(flag_aggregation, randn(4, 1000), components=4).result
    assert result.caveats
    assert result.value_null == 0.004
    zero = solved(flag_aggregation, torch.zeros(3, 5).double()).result
    assert zero.value is None
    assert zero.zero_rows == 3

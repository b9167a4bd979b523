"""spectrum.parallel_analysis: nothing in noise of any shape, what was planted, and draws that no partition changes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import parallel_analysis
from tasks.numerics.signs import signs


def run(
    x: Tensor, sample: Tensor | None = None, weight: Tensor | None = None, pieces: int = 2, **options: Any
) -> tuple[parallel_analysis.Result, dict[str, Array]]:
    """The method as the engine calls it, in two passes."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = parallel_analysis.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    parallel_analysis.check(inputs, config)
    carry: dict[str, Tensor] | None = parallel_analysis.start(inputs, config)
    while carry is not None:
        state, now = None, carry
        for part in torch.arange(len(x)).tensor_split(pieces):
            given = None if weight is None else weight[part]
            other = parallel_analysis.partial(
                Block({"x": x[part]}, sample[part], part, part, weight=given), now, config
            )
            state = other if state is None else parallel_analysis.merge(state, other)
        assert state is not None
        carry = parallel_analysis.update(state, now, inputs, config)
    return parallel_analysis.finish(state, now, inputs, config)


def noise(n: int, d: int, seed: int) -> Tensor:
    """Features of very different variance with nothing in common."""
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, d, dtype=torch.float64, generator=rng) * torch.linspace(0.3, 3, d, dtype=torch.float64)
        + 7
    )


@pytest.mark.parametrize("each", [1, 8])
def test_noise_of_any_shape_has_no_component(each: int) -> None:
    """Also where rows of a sample are nearly the same."""
    counted = []
    for seed in range(400):
        rows = noise(80, 10, seed).repeat_interleave(each, 0) + 0.05 * noise(80 * each, 10, 1000 + seed)
        sample = torch.arange(80).repeat_interleave(each)
        counted.append(run(rows, sample, pieces=1, seed=seed)[0].components)
    assert np.mean([k > 0 for k in counted]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_rows_as_groups_of_their_own_see_components_where_there_are_none() -> None:
    """The negative control: signs of each row destroy what a sample's rows have in common."""
    counted = [
        run(noise(60, 20, seed).repeat_interleave(8, 0), pieces=1, seed=seed)[0].components
        for seed in range(20)
    ]
    assert np.mean([k > 0 for k in counted]) > 0.5


def test_planted_components_are_found() -> None:
    n, d = 400, 100
    edge = (1 + math.sqrt(d / n)) ** 2
    found = []
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(n, d, dtype=torch.float64, generator=rng)
        turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=rng)).Q
        x[:, :3] *= math.sqrt(1.5 * edge)
        found.append(run(x @ turn, pieces=1, seed=seed)[0].components)
    assert np.mean([k == 3 for k in found]) >= 0.95


def test_weak_components_behind_strong_ones() -> None:
    """Each is found when what hid it is taken out."""
    rng = torch.Generator().manual_seed(0)
    x = (
        torch.randn(400, 50, dtype=torch.float64, generator=rng)
        * torch.cat([torch.tensor([100.0, 20.0, 4.0]), torch.ones(47)]).double()
    )
    turned = x @ torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64, generator=rng)).Q
    result, arrays = run(turned)
    assert (result.components, result.settled) == (3, True)
    assert result.rounds > 2
    assert bool((arrays["p_value"].values[:3] <= 0.05).all())
    assert bool((arrays["p_value"].values[3:] > 0.05).all())
    one, _ = run(turned, rounds=1)
    assert (one.components, one.settled) == (1, False)
    assert result.largest_null < one.largest_null / 100


def test_draws_are_those_of_numpy() -> None:
    x = noise(90, 12, 0)
    sample = torch.arange(30).repeat_interleave(3)
    result, arrays = run(x, sample, draws=4, level=0.2, seed=3, rounds=1)
    centred = (x - x.mean(0)).numpy()
    for draw in range(4):
        flipped = centred * signs(sample, 12, 3, draw).numpy()
        expected = np.linalg.eigvalsh(flipped.T @ flipped / 89)[::-1]
        np.testing.assert_allclose(arrays["null_eigenvalue"].values[draw], expected, rtol=1e-10)
    values = np.linalg.eigvalsh(np.cov(x.numpy().T))[::-1]
    np.testing.assert_allclose(arrays["eigenvalue"].values, values, rtol=1e-11)
    assert result.largest_null == pytest.approx(float(arrays["null_eigenvalue"].values.max()))


def test_signs_are_even_and_independent_and_belong_to_their_key() -> None:
    found = signs(torch.arange(20_000), 100, 0, 0)
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert float(found.mean(0).abs().max()) < 5 / math.sqrt(20_000)
    together = found.T @ found / 20_000 - torch.eye(100)
    assert float(together.abs().max()) < 5 / math.sqrt(20_000)
    assert float((found * signs(torch.arange(20_000), 100, 0, 1)).mean().abs()) < 5 / math.sqrt(2e6)
    assert float((found * signs(torch.arange(20_000), 100, 1, 0)).mean().abs()) < 5 / math.sqrt(2e6)
    assert float((found[1:] * found[:-1]).mean().abs()) < 5 / math.sqrt(2e6)
    torch.testing.assert_close(signs(torch.tensor([7, 7, 3]), 100, 0, 0), found[[7, 7, 3]])


def test_weights_that_count_are_rows_repeated() -> None:
    x = noise(40, 8, 1)
    weight = torch.arange(40).remainder(3).double()
    repeated = torch.arange(40).repeat_interleave(weight.long())
    x[weight == 0] = torch.nan  # absent
    whole, other = run(x, weight=weight, rounds=1)[1], run(x[repeated], repeated, rounds=1)[1]
    ratio = whole["null_eigenvalue"].values / other["null_eigenvalue"].values
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-9, atol=0)


def test_too_few_draws_for_the_level_are_refused() -> None:
    with pytest.raises(MethodError, match="at least 99 draws"):
        run(noise(20, 4, 0), level=0.01)


def test_draws_that_do_not_fit_are_refused() -> None:
    inputs = Inputs(widths={"x": 8192}, n_rows=10, n_samples=10)
    with pytest.raises(MethodError, match="at most 4 draws"):
        parallel_analysis.check(inputs, parallel_analysis.Config())


def test_constant_rows_have_no_component() -> None:
    result, _ = run(torch.ones(30, 5).double())
    assert (result.components, result.explained, result.settled) == (0, None, True)

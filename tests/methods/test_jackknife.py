"""spectrum.jackknife: equal to leaving groups out by hand, and intervals that cover where those for independent rows do not."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import jackknife, pca
from tasks.numerics import jackknife as numerics
from tasks.numerics import moments, spectrum
from tasks.numerics.split import spread


def run(
    x: Tensor, sample: Tensor, pieces: int = 3, **options: Any
) -> tuple[jackknife.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    config = jackknife.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1)
    jackknife.check(inputs, config)
    carry, state = jackknife.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(pieces):
        other = jackknife.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
        state = other if state is None else jackknife.merge(state, other)
    assert state is not None
    return jackknife.finish(state, carry, inputs, config)


def texts(n: int, each: int, scales: Tensor, seed: int, shared: float = 0.9) -> tuple[Tensor, Tensor]:
    """Rows of Gaussian samples that share a part of their variance inside a sample."""
    rng = torch.Generator().manual_seed(seed)
    own = torch.randn(n * each, len(scales), dtype=torch.float64, generator=rng)
    common = torch.randn(n, len(scales), dtype=torch.float64, generator=rng).repeat_interleave(each, 0)
    rows = (math.sqrt(shared) * common + math.sqrt(1 - shared) * own) * scales.sqrt() + 20
    return rows, torch.arange(n).repeat_interleave(each)


SCALES = torch.tensor([6.0, 3.0, 1.5, 1.0, 0.5], dtype=torch.float64)


def test_numbers_are_those_of_numpy_without_each_group() -> None:
    x, sample = texts(47, 6, SCALES, 0)
    result, arrays = run(x, sample, groups=7, components=2)

    def measured(rows: Tensor) -> dict[str, float]:
        values = np.linalg.eigvalsh(np.cov(rows.numpy().T))[::-1]
        share, n = values / values.sum(), len(rows)
        fourth = ((rows - rows.mean(0)) ** 2).sum(1).square().sum().item()
        unbiased = spectrum.participation_ratio_unbiased(values.sum(), (values**2).sum(), fourth, n)
        return {
            "participation_ratio_unbiased": unbiased,
            "trace": values.sum(),
            "participation_ratio": values.sum() ** 2 / (values**2).sum(),
            "effective_rank": math.exp(-(share * np.log(share)).sum()),
            "stable_rank": values.sum() / values[0],
            "anisotropy": values[0] / values.sum(),
            "largest": values[0],
        }

    whole = measured(x)
    without = [measured(x[spread(sample, 7) != g]) for g in range(7)]
    most = {"participation_ratio": 5, "effective_rank": 5, "stable_rank": 5, "anisotropy": 1}
    for name in (*most, "trace", "participation_ratio_unbiased"):
        found, top = getattr(result, name), most.get(name, math.inf)

        def odds(value: float, top: float = top) -> float:
            return math.log(value) if top == math.inf else math.log(value / (top - value))

        logs = np.array([odds(w[name]) for w in without])
        error = math.sqrt(6 / 7 * ((logs - logs.mean()) ** 2).sum())
        assert found.value == pytest.approx(whole[name], rel=1e-11)
        assert odds(found.high) - odds(found.low) == pytest.approx(
            2 * 2.446912 * error, rel=1e-6
        )  # t of 6 degrees
        assert odds(found.corrected) - odds(found.value) == pytest.approx(
            -6 * (logs.mean() - odds(whole[name])), rel=1e-6
        )
    logs = np.log([w["largest"] for w in without])
    variance = 6 / 7 * ((logs - logs.mean()) ** 2).sum()
    assert result.independent_rows == pytest.approx(2 / variance, rel=1e-8)
    assert float(arrays["eigenvalue"].values[0]) == pytest.approx(whole["largest"], rel=1e-12)


def test_intervals_of_shares_end_below_one() -> None:
    """Few groups that differ much, one of which has nearly all variance in one direction."""
    x, sample = texts(12, 3, torch.tensor([400.0, 1, 1, 1], dtype=torch.float64), 5)
    x[:9] = x[:9] * torch.tensor([0.02, 4, 4, 4])
    found = run(x, sample, groups=5)[0]
    for name, most in (("anisotropy", 1), ("participation_ratio", 4), ("stable_rank", 4)):
        one = getattr(found, name)
        assert 0 < one.low < one.value < one.high < most
    share = numerics.estimate(0.9, [0.5, 0.99, 0.93], 0.95, 1.0)
    assert 0 < share.low < 0.9 < share.high < 1
    assert numerics.estimate(0.9, [0.5, 0.99, 0.93], 0.95).high > 1
    assert numerics.estimate(1.0, [1.0, 1.0, 1.0], 0.95, 1.0).high == 1


def covered(found: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in found]))


@pytest.mark.slow
def test_intervals_cover_dependent_rows_and_those_for_independent_rows_do_not() -> None:
    by_groups, by_rows, ratios = [], [], []
    truth = float(SCALES.sum()) ** 2 / float(SCALES.square().sum())
    for seed in range(300):
        x, sample = texts(200, 32, SCALES, seed)
        result, arrays = run(x, sample, pieces=1, components=1)
        by_groups.append(
            (float(arrays["eigenvalue_low"].values[0]), float(arrays["eigenvalue_high"].values[0]))
        )
        values = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)
        low, high = spectrum.interval(values, len(x), 0.95)
        by_rows.append((float(low[0]), float(high[0])))
        ratios.append((result.participation_ratio.low, result.participation_ratio.high))  # type: ignore[union-attr,arg-type]
    assert 0.90 <= covered(by_groups, 6.0) <= 0.98
    assert 0.90 <= covered(ratios, truth) <= 0.98
    assert covered(by_rows, 6.0) < 0.5


def test_rows_of_one_text_are_worth_little() -> None:
    x, sample = texts(200, 32, SCALES, 1)
    dependent = run(x, sample)[0].independent_rows
    free = run(*texts(6400, 1, SCALES, 1), groups=100)[0].independent_rows
    assert dependent is not None
    assert free is not None
    assert dependent < 1000 < 3000 < free


def test_the_subspace_is_as_uncertain_as_it_turns_out() -> None:
    scales = torch.tensor([5.0, 4.0, 1.0, 0.8, 0.5], dtype=torch.float64)
    errors, told = [], []
    for seed in range(60):
        result, arrays = run(*texts(150, 8, scales, seed), components=2, pieces=1)
        basis = arrays["components"].values
        errors.append(2 - float(basis[:, :2].square().sum()))
        told.append(result.subspace_error)
    assert np.mean(told) == pytest.approx(np.mean(errors), rel=0.25)  # type: ignore[arg-type]


def test_a_basis_is_that_of_pca() -> None:
    x, sample = texts(50, 4, SCALES, 2)
    _, arrays = run(x, sample, components=5)
    config = pca.Config(components=5)
    inputs = Inputs(widths={"x": 5}, n_rows=len(x), n_samples=50)
    _, expected = pca.finish(moments.partial(x), {}, inputs, config)
    torch.testing.assert_close(
        arrays["components"].values, expected["components"].values, rtol=1e-8, atol=1e-9
    )


def test_groups_without_samples_are_told() -> None:
    x, sample = texts(6, 10, SCALES, 3)
    result, _ = run(x, sample, groups=20)
    assert result.n_groups == 6
    assert any("6 of 20 groups" in note for note in result.caveats)


def test_one_group_is_refused() -> None:
    x, sample = texts(1, 30, SCALES, 4)
    with pytest.raises(MethodError, match="samples fall into 1 groups"):
        run(x, sample)


def test_groups_that_do_not_fit_are_refused() -> None:
    inputs = Inputs(widths={"x": 8192}, n_rows=10, n_samples=10)
    with pytest.raises(MethodError, match="ask for at most 4 groups"):
        jackknife.check(inputs, jackknife.Config())

"""spectrum.summary against closed forms and planted ranks."""

import math

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import summary


def run(
    x: torch.Tensor, config: summary.Config | None = None, pieces: int = 3, weight: torch.Tensor | None = None
) -> tuple[summary.Result, dict[str, Array]]:
    """The method as the engine calls it: blocks in order, then one finish."""
    config = config or summary.Config()
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    carry, state = summary.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(pieces):
        rows = Block({"x": x[part]}, part, part, part, weight=None if weight is None else weight[part])
        other = summary.partial(rows, carry, config)
        state = other if state is None else summary.merge(state, other)
    assert state is not None
    return summary.finish(state, carry, inputs, config)


def exact_spectrum(values: torch.Tensor, offset: float = 3.0) -> torch.Tensor:
    """Rows whose sample covariance has exactly these eigenvalues."""
    d = len(values)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4 * d, d))
    scores = np.linalg.qr(noise - noise.mean(0))[0] * math.sqrt(4 * d - 1)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return torch.from_numpy(scores * values.sqrt().numpy() @ turn + offset)


def test_geometric_spectrum_in_closed_form() -> None:
    q, d = 0.9, 60
    values = q ** torch.arange(d, dtype=torch.float64)
    result, arrays = run(exact_spectrum(values))
    hard = (1 + q) * (1 - q**d) / ((1 - q) * (1 + q**d))
    share = values / values.sum()
    soft = math.exp(-float((share * share.log()).sum()))
    assert result.participation_ratio == pytest.approx(hard, rel=1e-11)
    assert result.effective_rank == pytest.approx(soft, rel=1e-11)
    assert result.stable_rank == pytest.approx((1 - q**d) / (1 - q), rel=1e-11)
    assert result.anisotropy == pytest.approx((1 - q) / (1 - q**d), rel=1e-11)
    assert result.concentration == pytest.approx((1 - q**10) / (1 - q**d), rel=1e-11)
    assert result.utilisation == pytest.approx(2 / (d / hard + d / soft), rel=1e-11)
    assert result.trace == pytest.approx(float(values.sum()), rel=1e-12)
    expected = [math.ceil(math.log(1 - p * (1 - q**d)) / math.log(q)) for p in (0.9, 0.95, 0.99)]
    assert [result.components_90, result.components_95, result.components_99] == expected
    assert result.active_share == expected[-1] / d
    torch.testing.assert_close(arrays["cumulative_share"].values, share.cumsum(0), rtol=1e-11, atol=0)
    torch.testing.assert_close(arrays["eigenvalue"].values, values, rtol=1e-10, atol=0)


def test_planted_active_subspace() -> None:
    """Rank 0.6 d, flat: every dimension says 36 of 60, whatever the offset."""
    values = torch.cat([torch.full((36,), 2.0), torch.zeros(24)]).double()
    result, arrays = run(exact_spectrum(values, offset=100.0))
    for number in (result.participation_ratio, result.effective_rank, result.stable_rank):
        assert number == pytest.approx(36, rel=1e-9)
    assert result.numerical_rank == result.components_99 == 36
    assert result.active_share == 0.6
    assert bool(arrays["eigenvalue"].values[36:].isnan().all())
    assert any("24 eigenvalues lie below" in note for note in result.caveats)


def test_one_direction_is_fully_anisotropic() -> None:
    x = torch.randn(200, 1, dtype=torch.float64) * torch.ones(8, dtype=torch.float64)
    result, _ = run(x)
    assert result.anisotropy == pytest.approx(1, abs=1e-12)
    assert (result.anisotropy_low, result.anisotropy_high) == pytest.approx((1, 1), abs=1e-9)
    assert result.components_99 == 1


def test_few_isotropic_rows() -> None:
    """The naive ratio is far off, the unbiased one is not, and the caveat says so."""
    generator = torch.Generator().manual_seed(0)
    found = [run(torch.randn(50, 200, generator=generator, dtype=torch.float64))[0] for _ in range(30)]
    naive = np.mean([result.participation_ratio for result in found])
    unbiased = np.mean([result.participation_ratio_unbiased for result in found])
    assert naive < 45
    assert unbiased == pytest.approx(200, rel=0.04)
    assert any("50 effective rows for 200 features" in note for note in found[0].caveats)


def test_anisotropy_interval_holds_the_truth() -> None:
    truth, inside = 9 / (9 + 7), 0
    for seed in range(100):
        x = torch.randn(400, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x[:, 0] *= 3
        result, _ = run(x, pieces=1)
        assert result.anisotropy_low is not None
        assert result.anisotropy_high is not None
        assert result.anisotropy_low < (result.anisotropy or 0) < result.anisotropy_high
        inside += result.anisotropy_low <= truth <= result.anisotropy_high
    assert inside >= 88


def test_weights_that_count_equal_repetition() -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(1))
    weighted, _ = run(x, summary.Config(weights="count"), weight=counts.double())
    repeated, _ = run(x.repeat_interleave(counts, dim=0))
    ours, theirs = weighted.model_dump(exclude={"n_rows"}), repeated.model_dump(exclude={"n_rows"})
    for name in set(ours) - {"caveats", "residual"}:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-11), name


def test_weights_of_importance_are_named_as_an_approximation() -> None:
    x = torch.randn(60, 5, dtype=torch.float64)
    weight = torch.rand(60, dtype=torch.float64) + 0.1
    result, _ = run(x, weight=weight)
    assert any("approximation" in note for note in result.caveats)
    equal, _ = run(x, weight=torch.full((60,), 2.5, dtype=torch.float64))
    plain, _ = run(x)
    assert not any("approximation" in note for note in equal.caveats)
    assert equal.participation_ratio_unbiased == pytest.approx(plain.participation_ratio_unbiased, rel=1e-11)


def test_no_variance_has_no_numbers() -> None:
    result, _ = run(torch.full((20, 3), 7.0))
    assert result.numerical_rank == 0
    assert result.trace == 0
    for name in ("participation_ratio", "effective_rank", "anisotropy", "components_90", "utilisation"):
        assert getattr(result, name) is None


def test_about_the_origin_the_unbiased_ratio_is_unknown() -> None:
    x = torch.randn(60, 5, dtype=torch.float64) + 2
    result, _ = run(x, summary.Config(center=False))
    assert result.participation_ratio_unbiased is None
    assert result.trace == pytest.approx(float(x.square().sum() / 60), rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 1), (2, 40), (5, 3), (300, 12)])
def test_shapes_and_json(shape: tuple[int, int]) -> None:
    result, arrays = run(torch.randn(*shape, generator=torch.Generator().manual_seed(3)), pieces=2)
    assert summary.Result.model_validate_json(result.model_dump_json()) == result
    assert {name: array.dims for name, array in arrays.items()} == summary.ARRAYS
    assert all(array.values.shape == (shape[1],) for array in arrays.values())


def test_one_row_is_refused() -> None:
    with pytest.raises(MethodError, match="found 1 rows, expected at least 2"):
        run(torch.randn(1, 4), pieces=1)

"""compression.utilised: the layer that stands for it, the best of its rank beside, held-out samples, and inputs that cannot be meant."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.low_rank import LowRankLinear
from tasks.methods.compression import low_rank, utilised
from tasks.methods.spectrum import utilised_rank
from tasks.numerics.split import spread
from tests.methods.cases import case, run
from tests.methods.layer_cases import NAME, compressed, correlated, drawn


def found(x: Tensor, weight: Tensor, **options: object) -> tuple[utilised.Result, dict[str, Tensor]]:
    result, arrays = compressed(utilised, x, weight, **options)
    return result, {name: array.values for name, array in arrays.items()}


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("outputs", [9, 40])
def test_losses_are_those_of_the_layer_that_stands_for_it(corrected: bool, outputs: int) -> None:
    x, weight = correlated(300, 24), drawn(outputs, 24, seed=5)
    result, arrays = found(x, weight, energy=0.9, corrected=corrected)
    layer, x, weight = Affine(weight.double(), None), x.double(), weight.double()
    for rank in (1, result.made.rank):
        made = LowRankLinear.of(arrays, result.model_dump(), {"rank": rank}, layer)
        away = (made(x).detach() - x @ weight.T).square().sum(1).mean()
        assert float(away) == pytest.approx(float(arrays["loss"][rank]), rel=1e-4)
    outs = x @ weight.T
    energy = float((outs - outs.mean(0) if corrected else outs).square().sum(1).mean())
    assert result.energy == pytest.approx(energy, rel=1e-9)
    assert result.made.lost == pytest.approx(float(arrays["loss"][-1]) / energy, rel=1e-9)


def test_the_best_of_the_rank_never_loses_more() -> None:
    """And is what `compression.low_rank` says of itself."""
    x, weight = correlated(300, 24), drawn(30, 24, seed=5)
    result, arrays = found(x, weight, energies=(0.5, 0.9, 0.99, 1.0))
    _, best = compressed(low_rank, x, weight)
    n = len(arrays["loss"])
    assert torch.allclose(arrays["best_loss"], best["loss"].values[:n], rtol=1e-9)
    assert torch.allclose(arrays["plain_loss"], best["plain_loss"].values[:n], rtol=1e-9)
    for at in result.at:
        assert at.lost >= at.lost_best - 1e-12
    assert any(at.lost > 1.05 * at.lost_best for at in result.at)
    (whole,) = (at for at in result.at if at.share == 1)
    assert whole.lost == pytest.approx(0, abs=1e-12)
    assert any("do not pay" in note for note in found(x, weight, energy=1.0)[0].caveats)


def test_ranks_are_those_of_the_analysis() -> None:
    x, weight = correlated(300, 24), drawn(30, 24, seed=5)
    for center in (True, False):
        result, _ = found(x, weight, energy=0.95, corrected=center)
        told, _ = compressed(utilised_rank, x, weight, energy=0.95, center=center, groups=5)
        assert (result.made.input_rank, result.made.output_rank) == (told.input_rank, told.output_rank)
        assert result.made.lost == pytest.approx(told.error.value**2, rel=1e-6)


def test_held_out_losses_are_those_of_the_other_samples() -> None:
    made = case("compression.utilised")
    answer = run(made._replace(config=utilised.Config(energy=0.9, groups=2)))
    x, weight = made.block["x"].double(), made.inputs.weights[NAME].double()
    lost = []
    for half in (spread(made.block.sample, 2) == g for g in (0, 1)):
        fit, other = x[~half], x[half]
        middle = fit.mean(0)
        _, s, v = torch.linalg.svd(fit - middle, full_matrices=False)
        _, t, u = torch.linalg.svd((fit - middle) @ weight.T, full_matrices=False)
        k, m = (int((e.square().cumsum(0) / e.square().sum() < 0.9).sum()) + 1 for e in (s, t))
        left = (other - middle) @ (weight - u[:m].T @ u[:m] @ weight @ v[:k].T @ v[:k]).T
        lost.append(left.square().sum(1).mean())
    assert float(answer.arrays["held_out_loss"][-1]) == pytest.approx(float(sum(lost)) / 2, rel=1e-6)


def test_dead_inputs_few_rows_and_layers_of_one_output() -> None:
    x, weight = correlated(300, 24), drawn(30, 24, seed=5)
    x[:, 3] = 0
    result, arrays = found(x, weight)
    assert any("never varied" in note for note in result.caveats)
    assert arrays["left"].isfinite().all()
    few, _ = found(x[:5], weight)
    assert few.made.rank <= 4
    assert found(x[:1], weight)[0].made.lost == 0  # about the mean of one row there is nothing
    one, _ = found(x, drawn(1, 24, seed=6))
    assert one.made.rank == one.made.output_rank == 1
    still, arrays = found(x, torch.zeros(30, 24))
    assert (still.made.output_rank, still.made.rank, still.made.lost) == (0, 1, 0)
    assert arrays["left"].shape == (30, 1)


def test_a_single_sample_holds_nothing_out() -> None:
    made = case("compression.utilised")
    block = replace(made.block, sample=torch.zeros_like(made.block.sample))
    answer = run(made._replace(block=block))
    assert any("nothing is held out" in note for note in answer.result.caveats)
    assert answer.arrays["held_out_loss"].isnan().all()
    assert answer.result.made.lost_held_out is None


def test_what_is_refused() -> None:
    made = case("compression.utilised")
    inputs = replace(made.inputs, weights={NAME: torch.zeros(3, 7)})
    with pytest.raises(MethodError, match=r"expected \[outputs, 40\]"):
        utilised.check(inputs, made.config)
    inputs = replace(made.inputs, weights={NAME: torch.full((3, 40), torch.nan)})
    with pytest.raises(MethodError, match="NaN"):
        utilised.check(inputs, made.config)
    with pytest.raises(MethodError, match=r"expected shares above 0"):
        utilised.check(made.inputs, utilised.Config(energies=(0.9, 1.5)))

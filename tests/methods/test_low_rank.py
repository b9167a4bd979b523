"""Low-rank layers: losses measured on rows, dead features, the mean, and what the engine reads of a network."""

from dataclasses import replace

import pytest
import torch

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.low_rank import LowRankLinear
from tasks.methods.compression import low_rank
from tasks.numerics.split import spread
from tests.methods.cases import Answer, case, run


def answer(**options: object) -> tuple[Answer, torch.Tensor, torch.Tensor]:
    """On the rows of the contract's case; the rows, and the weights."""
    made = case("compression.low_rank")
    made = made._replace(config=low_rank.Config.model_validate(options))
    return run(made), made.block["x"].double(), made.inputs.weights["{module}.weight"]


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("metric", ["outputs", "scales", "weights"])
def test_losses_are_those_of_the_layer_that_stands_for_it(corrected: bool, metric: str) -> None:
    found, x, weight = answer(corrected=corrected, metric=metric, kept=(0.5,))
    (at,) = found.result.at
    layer = Affine(weight.double(), None)
    for rank in (1, at.rank, 30):
        made = LowRankLinear.of(found.arrays, found.result.model_dump(), {"rank": rank}, layer)
        away = (made(x).detach() - x @ weight.double().T).square().sum(1).mean()
        assert float(away) == pytest.approx(float(found.arrays["loss"][rank]), rel=1e-4)
    outputs = x @ weight.double().T
    energy = (outputs - outputs.mean(0) if corrected else outputs).square().sum(1).mean()
    assert found.result.energy == pytest.approx(float(energy), rel=1e-9)
    assert at.rank == 10
    assert at.lost == pytest.approx(float(found.arrays["loss"][10]) / float(energy), rel=1e-9)


def test_the_mean_saves_a_rank() -> None:
    """The rows have a mean far from zero."""
    with_mean, without = (answer(corrected=c)[0] for c in (True, False))
    assert (with_mean.arrays["loss"] <= without.arrays["loss"] * (1 + 1e-9)).all()
    assert float(with_mean.arrays["loss"][1]) < 0.7 * float(without.arrays["loss"][1])


def test_held_out_losses_are_those_of_the_other_samples() -> None:
    found, x, weight = answer(groups=2)
    made = case("compression.low_rank")
    halves = [spread(made.block.sample, 2) == g for g in (0, 1)]
    losses = []
    for half in halves:
        fit, other = x[~half], x[half]
        y = (fit - fit.mean(0)) @ weight.double().T
        u = torch.linalg.svd(y.T, full_matrices=False).U[:, :5]
        left = (other - fit.mean(0)) @ weight.double().T
        losses.append((left - left @ u @ u.T).square().sum(1).mean())
    assert float(found.arrays["held_out_loss"][5]) == pytest.approx(float(sum(losses)) / 2, rel=1e-6)
    assert float(found.arrays["held_out_loss"][5]) > float(found.arrays["loss"][5])


def test_a_single_sample_holds_nothing_out() -> None:
    made = case("compression.low_rank")
    block = replace(made.block, sample=torch.zeros_like(made.block.sample))
    found = run(made._replace(block=block))
    assert any("nothing is held out" in note for note in found.result.caveats)
    assert found.arrays["held_out_loss"].isnan().all()
    assert all(at.lost_held_out is None for at in found.result.at)


def test_weights_of_another_width() -> None:
    made = case("compression.low_rank")
    inputs = replace(made.inputs, weights={"{module}.weight": torch.zeros(3, 7)})
    with pytest.raises(MethodError, match=r"expected \[outputs, 40\]"):
        low_rank.check(inputs, made.config)
    inputs = replace(made.inputs, weights={"{module}.weight": torch.full((3, 40), torch.nan)})
    with pytest.raises(MethodError, match="NaN"):
        low_rank.check(inputs, made.config)

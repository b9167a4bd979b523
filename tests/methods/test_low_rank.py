"""Low-rank layers: losses measured on rows, dead features, the mean, and what the engine reads of a network."""

from dataclasses import replace

import pytest
import torch

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.low_rank import LowRankLinear
from tasks.methods.compression import low_rank, two_sided
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


def two(**options: object) -> tuple[Answer, torch.Tensor, torch.Tensor, torch.Tensor]:
    made = case("compression.two_sided")
    made = made._replace(config=two_sided.Config.model_validate(options))
    weight = made.inputs.weights["{module}.weight"].double()
    return run(made), made.block["x"].double(), made.block["g"].double(), weight


@pytest.mark.parametrize("corrected", [True, False])
def test_two_sided_losses(corrected: bool) -> None:
    """In the root of the gradients' second moment, damped; and never above those of one-sided factors."""
    found, x, g, weight = two(corrected=corrected)
    metric = g.T @ g / len(g)
    metric += 0.01 * metric.trace() / len(metric) * torch.eye(len(metric))
    z = x - x.mean(0) if corrected else x
    for rank in (0, 3, 11):
        away = (
            z @ (weight - found.arrays["left"][:, :rank].double() @ found.arrays["right"][:rank].double()).T
        )
        loss = (away @ metric * away).sum(1).mean()
        assert float(loss) == pytest.approx(float(found.arrays["loss"][rank]), rel=1e-4)
        assert float(away.square().sum(1).mean()) == pytest.approx(
            float(found.arrays["output_loss"][rank]), rel=1e-4
        )
    one_sided = answer(corrected=corrected)[0]
    assert (found.arrays["output_loss"] >= one_sided.arrays["loss"] * (1 - 1e-6)).all()


def test_fisher_rows_are_a_row_weighted_decomposition() -> None:
    found, x, g, weight = two(metric="fisher_rows")
    importance = (x.square().sum(1) @ g.square()).sqrt()
    u, s, v = torch.linalg.svd(importance[:, None] * weight, full_matrices=False)
    expected = (u[:, :4] * s[:4] @ v[:4]) / importance[:, None]
    made = found.arrays["left"][:, :4].double() @ found.arrays["right"][:4].double()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


def test_gradients_of_another_layer() -> None:
    made = case("compression.two_sided")
    inputs = replace(made.inputs, sites={"x": "a:in:0", "g": "b:out:0:grad"})
    with pytest.raises(MethodError, match="gradient at the output of the layer"):
        two_sided.check(inputs, made.config)
    inputs = replace(made.inputs, widths={"x": 40, "g": 39})
    with pytest.raises(MethodError, match="with 39 features, expected"):
        two_sided.check(inputs, made.config)


def test_gradients_of_zero() -> None:
    made = case("compression.two_sided")
    rows = {"x": made.block["x"], "g": torch.zeros_like(made.block["g"])}
    found = run(made._replace(block=replace(made.block, rows=rows)))
    assert any("all gradients are zero" in note for note in found.result.caveats)
    assert found.arrays["left"].isfinite().all()

"""Two-sided low-rank layers: losses in the gradients' metric, rows by Fisher information, gradients of another layer."""

from dataclasses import replace

import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.compression import two_sided
from tests.methods.cases import Answer, case, run


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
    low_rank = case("compression.low_rank")
    options = low_rank.config.model_copy(update={"corrected": corrected})
    one_sided = run(low_rank._replace(config=options))
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

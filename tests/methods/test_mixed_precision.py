"""compression.mixed_precision: losses of the layer itself on the held-out rows, planted outliers, and inputs that cannot be meant."""

from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.mixed_precision import MixedPrecisionLinear
from tasks.methods.compression import mixed_precision
from tasks.methods.contract import Array, Block, Inputs
from tasks.numerics.split import held_out

NAME = "{module}.weight"


def run(x: Tensor, weight: Tensor, **options: Any) -> tuple[mixed_precision.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    config = mixed_precision.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), weights={NAME: weight})
    mixed_precision.check(inputs, config)
    each = torch.arange(len(x))
    return mixed_precision.solve(Block({"x": x}, each, each, each), inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(n: int, width: int = 48) -> Tensor:
    """A few inputs are many times larger than the others."""
    x = drawn(n, width)
    x[:, [3, 20, 33]] *= 30
    return x + 0.2


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_layer_loses_what_it_says(rounding: str) -> None:
    x, weight, bias = with_outliers(800), drawn(30, 48, seed=3), drawn(30, seed=4)
    result, arrays = run(x, weight, rounding=rounding)
    values = {name: array.values for name, array in arrays.items()}
    layer = MixedPrecisionLinear.of(values, result.model_dump(), {}, Affine(weight, bias))
    test = held_out(torch.arange(800), 0.25, 0)
    y = x.double() @ weight.double().T
    off = (layer(x[test]).detach().double() - bias.double() - y[test]).square().sum() / y[test].square().sum()
    assert result.lost == pytest.approx(float(off), rel=1e-2)
    assert (result.n_train_rows, result.n_test_rows) == (int((~test).sum()), int(test.sum()))
    seen = x[~test].double() @ layer.affine().weight.T - y[~test]
    assert result.lost_weights == pytest.approx(
        float(seen.square().sum() / y[~test].square().sum()), rel=1e-4
    )
    assert (result.high, result.bits) == (6, 4.5)
    assert result.bytes_after + result.rotation_bytes == layer.stored_bytes - 30 * 4
    assert result.kind == MixedPrecisionLinear.kind


def test_outliers_are_what_the_split_is_for() -> None:
    result, _ = run(with_outliers(800), drawn(30, 48, seed=3))
    assert result.energy_high > 0.95
    assert result.lost < 0.1 * result.lost_unsplit
    assert result.lost_unsplit < result.lost_unrotated
    assert result.lost_weights < result.lost


def test_few_directions_and_still_inputs() -> None:
    x = drawn(200, 3) @ drawn(3, 48, seed=1)
    x[:, 7] = 0
    result, arrays = run(x, drawn(1, 48, seed=3))
    assert result.energy_high == pytest.approx(1)
    assert result.lost < 1e-3
    assert all(array.values.isfinite().all() for array in arrays.values())
    assert "rows for 48 inputs" in " ".join(result.caveats)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MethodError, match=r"\(20, 7\), expected \[outputs, 20\]"):
        run(drawn(60, 20), torch.zeros(20, 7))
    with pytest.raises(MethodError, match="holds NaN"):
        run(drawn(60, 20), torch.full((3, 20), torch.nan))
    with pytest.raises(MethodError, match=r"a share of 0\.01 of 20 inputs is 0, expected 1 to 19"):
        run(drawn(60, 20), drawn(3, 20), share=0.01)
    with pytest.raises(MethodError, match="0 rows to make the layer and 1 to measure it"):
        run(drawn(1, 20), drawn(3, 20))
    for x, weight in ((torch.zeros(60, 20), drawn(3, 20)), (drawn(60, 20), torch.zeros(3, 20))):
        with pytest.raises(MethodError, match=r"all inputs or outputs of .* are zero"):
            run(x, weight)

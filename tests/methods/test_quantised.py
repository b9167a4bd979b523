"""compression.quantised: errors from the rows themselves, bytes as the layer has them, and inputs that cannot be meant."""

from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.quantised import QuantisedLinear
from tasks.engine.reduction import make_reduction
from tasks.methods.compression import quantised
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import pca
from tasks.numerics.weight_codes import rounded

NAME = "{module}.weight"


def run(x: Tensor, weight: Tensor, **options: Any) -> tuple[quantised.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    config = quantised.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), weights={NAME: weight})
    quantised.check(inputs, config)
    carry, state = quantised.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = quantised.partial(Block({"x": x[part]}, part, part, part), carry, config)
        state = other if state is None else quantised.merge(state, other)
    assert state is not None
    return quantised.finish(state, carry, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, width: int) -> Tensor:
    return drawn(n, width // 3) @ drawn(width // 3, width, seed=1) + 0.3 * drawn(n, width, seed=2) + 0.5


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 16, True), (3, None, True), (2, 10, False), (8, None, False)]
)
def test_the_layer_is_as_far_off_as_it_says(
    rounding: str, bits: int, group: int | None, symmetric: bool
) -> None:
    x, weight, bias = correlated(500, 48), drawn(30, 48, seed=3), drawn(30, seed=4)
    result, arrays = run(x, weight, rounding=rounding, bits=bits, group=group, symmetric=symmetric)
    values = {name: array.values for name, array in arrays.items()}
    layer = QuantisedLinear.of(values, result.model_dump(), {}, Affine(weight, bias))
    y = x.double() @ weight.double().T
    off = layer.affine().weight
    expected = torch.linalg.matrix_norm(x.double() @ off.T - y) / torch.linalg.matrix_norm(y)
    assert result.error == pytest.approx(float(expected), rel=1e-9)
    near = rounded(weight.double(), bits, group, symmetric, clip=True).weight()
    expected = torch.linalg.matrix_norm(x.double() @ near.T - y) / torch.linalg.matrix_norm(y)
    assert result.nearest_error == pytest.approx(float(expected), rel=1e-9)
    assert result.rounding == rounding
    if rounding == "gptq":
        assert result.error < 0.7 * result.nearest_error
    else:
        assert result.error == result.nearest_error
    assert result.kind == QuantisedLinear.kind
    assert result.bytes_before == 30 * 48 * 4
    assert result.bytes_after == layer.stored_bytes - 30 * 4
    torch.testing.assert_close(layer(x).double(), x.double() @ off.T + bias.double(), atol=1e-4, rtol=1e-4)


def test_worse_codes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = rounded(drawn(30, 48, seed=9).double(), 4, 64 - 16, True)
    monkeypatch.setattr(quantised, "gptq", lambda *_: worse)
    result, _ = run(correlated(500, 48), drawn(30, 48, seed=3), group=48)
    assert result.rounding == "nearest"
    assert result.error == result.nearest_error
    assert "the nearest codes were kept" in " ".join(result.caveats)


def test_dead_inputs_few_rows_one_row_one_output() -> None:
    x = correlated(5, 48)
    x[:, [3, 7]] = 0
    result, arrays = run(x, drawn(1, 48, seed=3), group=None)
    assert result.error is not None
    assert result.nearest_error is not None
    assert result.error <= result.nearest_error
    assert arrays["code"].values.shape == (1, 48)
    notes = " ".join(result.caveats)
    assert "2 of 48 inputs were always zero" in notes
    assert "5 rows for 48 inputs" in notes
    assert run(x[:1], drawn(4, 48, seed=3))[0].n_rows == 1


def test_no_outputs_at_all() -> None:
    result, _ = run(torch.zeros(20, 8), drawn(4, 8), group=None)
    assert result.error is None
    assert result.rounding == "nearest"
    result, arrays = run(drawn(20, 8), torch.zeros(4, 8), group=None)
    assert result.error is None
    assert (arrays["code"].values == 8).all()


def test_its_moments_are_those_that_other_methods_read() -> None:
    inputs = Inputs(widths={"x": 64}, n_rows=9, n_samples=9)
    found = {make_reduction("", m, m.Config(), {}, inputs).id for m in (quantised, pca)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(20, 7), r"\(20, 7\), expected \[outputs, 20\]"),
        (torch.zeros(20), r"\(20,\), expected"),
        (torch.full((3, 20), torch.nan), "holds NaN"),
    ],
)
def test_what_cannot_be_meant_is_refused(weight: Tensor, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        run(drawn(60, 20), weight)

"""compression.quantised: errors from the rows themselves, bytes as the layer has them, and inputs that cannot be meant."""

from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.quantised import QuantisedLinear
from tasks.engine.reduction import make_reduction
from tasks.methods.compression import low_rank, quantised
from tasks.methods.contract import Array, Inputs
from tasks.numerics.split import spread
from tasks.numerics.weight_codes import rounded
from tests.methods.layer_cases import compressed, correlated, drawn


def run(x: Tensor, weight: Tensor, **options: Any) -> tuple[quantised.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    return compressed(quantised, x, weight, **options)


def lost(x: Tensor, weight: Tensor, other: Tensor, corrected: bool) -> float:
    rows = x.double() - (x.double().mean(0) if corrected else 0)
    y = rows @ weight.double().T
    return float((rows @ other.T - y).square().sum() / y.square().sum())


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 16, True), (3, None, True), (2, 10, False), (8, None, False)]
)
def test_the_layer_loses_what_it_says(
    rounding: str, bits: int, group: int | None, symmetric: bool, corrected: bool
) -> None:
    x, weight, bias = correlated(500, 48), drawn(30, 48, seed=3), drawn(30, seed=4)
    result, arrays = run(
        x, weight, rounding=rounding, bits=bits, group=group, symmetric=symmetric, corrected=corrected
    )
    values = {name: array.values for name, array in arrays.items()}
    layer = QuantisedLinear.of(values, result.model_dump(), {}, Affine(weight, bias))
    assert result.lost == pytest.approx(lost(x, weight, layer.affine().weight, corrected), rel=1e-9)
    near = rounded(weight.double(), bits, group, symmetric, clip=True).weight()
    assert result.lost_nearest == pytest.approx(lost(x, weight, near, corrected), rel=1e-9)
    assert result.rounding == rounding
    if rounding == "gptq":
        assert result.lost < 0.5 * result.lost_nearest
    else:
        assert result.lost == result.lost_nearest
    y = x.double() @ weight.double().T + bias.double()
    energy = (y - (y.mean(0) if corrected else bias)).square().sum(1).mean()
    assert result.energy == pytest.approx(float(energy), rel=1e-6)
    off = (layer(x).detach().double() - y).square().sum(1).mean()
    assert float(off) == pytest.approx(result.lost * result.energy, rel=1e-3)
    assert result.kind == QuantisedLinear.kind
    assert result.bytes_before == 30 * 48 * 4
    assert result.bytes_after == layer.stored_bytes - 30 * 4


def test_worse_codes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = rounded(drawn(30, 48, seed=9).double(), 4, None, True)
    monkeypatch.setattr(quantised, "gptq", lambda *_: worse)
    result, _ = run(correlated(500, 48), drawn(30, 48, seed=3), group=None)
    assert result.rounding == "nearest"
    assert result.lost == result.lost_nearest
    assert "the nearest codes were kept" in " ".join(result.caveats)


def test_still_inputs_few_rows_one_row_one_output() -> None:
    x = correlated(5, 48)
    x[:, [3, 7]] = 2
    result, arrays = run(x, drawn(1, 48, seed=3), group=None)
    assert result.lost <= result.lost_nearest
    assert arrays["code"].values.shape == (1, 48)
    notes = " ".join(result.caveats)
    assert "2 of 48 inputs never varied" in notes
    assert "5 rows for 48 inputs" in notes
    for corrected in (True, False):
        assert run(x[:1], drawn(4, 48, seed=3), corrected=corrected)[0].n_rows == 1


def test_no_outputs_at_all() -> None:
    result, _ = run(torch.zeros(20, 8), drawn(4, 8))
    assert result.lost == 0
    assert result.rounding == "nearest"
    result, arrays = run(drawn(20, 8), torch.zeros(4, 8))
    assert result.lost == 0
    assert (arrays["code"].values == 8).all()


def test_held_out_losses_are_of_samples_without_a_part() -> None:
    x, weight = correlated(300, 48), drawn(30, 48, seed=3)
    result, _ = run(x, weight, groups=3)
    group = spread(torch.arange(300), 3)
    off = whole = 0.0
    for k in range(3):
        one, arrays = run(x[group != k], weight)
        values = {name: array.values for name, array in arrays.items()}
        layer = QuantisedLinear.of(values, one.model_dump(), {}, Affine(weight.double(), None))
        y, rows = x[group == k].double(), values["mean"]
        off += float((layer(y).detach() - y @ weight.double().T).square().sum(1).mean())
        whole += float(((y - rows) @ weight.double().T).square().sum(1).mean())
    assert result.lost_held_out == pytest.approx(off / whole, rel=1e-3)
    assert result.lost_held_out > result.lost
    assert run(x[:1], weight, corrected=False)[0].lost_held_out is None


def test_its_moments_are_those_that_other_methods_read() -> None:
    inputs = Inputs(widths={"x": 64}, n_rows=9, n_samples=9)
    found = {make_reduction("", m, m.Config(), {}, inputs).id for m in (quantised, low_rank)}
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

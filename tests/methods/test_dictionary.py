"""compression.dictionary: errors from the rows themselves, planted dictionaries, and inputs that cannot be meant."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.compressed.layer import Affine
from tasks.compressed.sparse import SparseDictionaryLinear
from tasks.engine.reduction import make_reduction
from tasks.methods.compression import dictionary, low_rank
from tasks.methods.contract import Array, Inputs
from tasks.numerics.split import spread
from tests.methods.layer_cases import compressed, correlated, drawn


def run(x: Tensor, weight: Tensor, **options: Any) -> tuple[dictionary.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    return compressed(dictionary, x, weight, **options)


def rows_of(x: Tensor, corrected: bool) -> Tensor:
    return x.double() - (x.double().mean(0) if corrected else 0)


def lost(x: Tensor, weight: Tensor, other: Tensor, corrected: bool) -> float:
    rows = rows_of(x, corrected)
    y = rows @ weight.double().T
    return float((rows @ other.T - y).square().sum() / y.square().sum())


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("form", ["orthogonal", "free"])
@pytest.mark.parametrize("outputs", [20, 90])
def test_the_layer_loses_what_it_says(form: str, outputs: int, corrected: bool) -> None:
    x, weight, bias = correlated(500, 48), drawn(outputs, 48, seed=3), drawn(outputs, seed=4)
    result, arrays = run(x, weight, form=form, kept=0.7, corrected=corrected)
    values = {name: array.values for name, array in arrays.items()}
    layer = SparseDictionaryLinear.of(values, result.model_dump(), {}, Affine(weight, bias))
    exact = (
        torch.zeros(outputs, result.atoms).double().scatter_(1, values["index"], values["value"])
        @ values["dictionary"].T
    )
    assert result.lost == pytest.approx(lost(x, weight, exact, corrected), rel=1e-9)
    assert result.lost == pytest.approx(float(values["step_loss"].min()), rel=1e-6)
    off = (layer(x).detach().double() - x.double() @ weight.double().T - bias.double()).square().sum(1).mean()
    assert float(off) == pytest.approx(result.lost * result.energy, rel=1e-3)
    if form == "orthogonal":
        assert (values["step_loss"].diff() <= 0).all()
    singular = np.linalg.svd(rows_of(x, corrected).numpy() @ weight.double().numpy().T, compute_uv=False) ** 2
    rank = int(0.7 * outputs * 48 / (outputs + 48))
    assert result.low_rank == rank
    assert result.lost_low_rank == pytest.approx(singular[rank:].sum() / singular.sum(), rel=1e-6)
    assert result.parameters_after == layer.numbers - outputs
    assert result.bytes_after == layer.stored_bytes - 4 * outputs
    cost = 48 * result.atoms + outputs * result.entries + outputs * result.atoms / 16
    assert 0.6 * outputs * 48 < cost <= 0.7 * outputs * 48
    assert result.kind == SparseDictionaryLinear.kind


def test_planted_entries_beat_every_product() -> None:
    """Outputs that take two of twelve directions, white inputs."""
    atoms = torch.linalg.qr(drawn(16, 12))[0]
    index = torch.rand(400, 12, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :2]
    weight = torch.zeros(400, 12).scatter_(1, index, 1 + drawn(400, 2).abs()) @ atoms.T
    result, _ = run(drawn(4000, 16), weight, kept=0.25, iterations=100)
    assert (result.atoms, result.entries) == (9, 3)
    assert result.lost < 0.3 * result.lost_low_rank


def test_still_inputs_few_rows_and_one_row() -> None:
    x = correlated(5, 48)
    x[:, [3, 7]] = 2
    result, arrays = run(x, drawn(30, 48, seed=3))
    assert all(array.values.isfinite().all() for array in arrays.values())
    assert result.lost < 1e-6  # four directions are all that there are
    notes = " ".join(result.caveats)
    assert "2 of 48 inputs never varied" in notes
    assert "5 rows for 48 inputs" in notes
    assert run(x[:1], drawn(30, 48, seed=3), corrected=False)[0].n_rows == 1


def test_held_out_losses_are_of_samples_without_a_part() -> None:
    x, weight = correlated(300, 48), drawn(30, 48, seed=3)
    result, _ = run(x, weight, groups=3)
    group = spread(torch.arange(300), 3)
    off = whole = 0.0
    for k in range(3):
        one, arrays = run(x[group != k], weight)
        values = {name: array.values for name, array in arrays.items()}
        layer = SparseDictionaryLinear.of(values, one.model_dump(), {}, Affine(weight.double(), None))
        y, rows = x[group == k].double(), values["mean"]
        off += float((layer(y).detach() - y @ weight.double().T).square().sum(1).mean())
        whole += float(((y - rows) @ weight.double().T).square().sum(1).mean())
    assert result.lost_held_out == pytest.approx(off / whole, rel=1e-3)
    assert result.lost_held_out > result.lost
    assert run(x[:1], weight, corrected=False)[0].lost_held_out is None


def test_its_moments_are_those_that_other_methods_read() -> None:
    inputs = Inputs(widths={"x": 64}, n_rows=9, n_samples=9)
    found = {make_reduction("", m, m.Config(), {}, inputs).id for m in (dictionary, low_rank)}
    assert len(found) == 1


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MethodError, match=r"\(20, 7\), expected \[outputs, 20\]"):
        run(drawn(60, 20), torch.zeros(20, 7))
    with pytest.raises(MethodError, match="holds NaN"):
        run(drawn(60, 20), torch.full((3, 20), torch.nan))
    with pytest.raises(MethodError, match="of 1 x 20 weights pays for no dictionary"):
        run(drawn(60, 20), drawn(1, 20))
    x, weight = drawn(60, 20), drawn(20, 20)
    x[:, 5:], weight[:, :5] = 0, 0
    for rows, zeros in (
        (torch.zeros(60, 20), drawn(20, 20)),
        (x, weight),
        (x, torch.zeros(20, 20)),
        (drawn(1, 20), drawn(20, 20)),
    ):
        with pytest.raises(MethodError, match=r"no output of \{module\}.weight varies in the \d+ rows"):
            run(rows, zeros)

"""spectrum.spectral_condition: planted ratios, Gaussian matrices, and matrices of zeros."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.methods.contract import Block, Inputs
from tasks.methods.spectrum import spectral_condition


def run(
    matrices: Tensor, order: list[int] | None = None, turned: bool = False
) -> tuple[spectral_condition.Result, dict[str, Tensor]]:
    """The method as the engine calls it, block by block in some order."""
    config = spectral_condition.Config(turned=turned)
    x = matrices.flatten(1)
    inputs = Inputs(
        widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), shapes={"x": tuple(matrices.shape[1:])}
    )
    carry = spectral_condition.start(inputs, config)
    pieces = torch.arange(len(x)).tensor_split(3)
    state, found = None, {}
    for k in order or range(3):
        block = Block({"x": x[pieces[k]]}, pieces[k], pieces[k] * 0, pieces[k])
        found[k] = spectral_condition.apply(block, carry, config)
        other = spectral_condition.partial(block, found[k], carry, config)
        state = other if state is None else spectral_condition.merge(state, other)
    result, _ = spectral_condition.finish(state or {}, carry, inputs, config)
    return result, {name: torch.cat([found[k][name] for k in range(3)]) for name in found[0]}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_planted_ratios(order: list[int]) -> None:
    """Semi-orthogonal matrices times r sqrt(out / in) have the ratio r, and all their rank."""
    planted = [0.5, 2.0, 1.0, 3.0, 0.25, 1.5]
    unit = torch.stack([torch.linalg.qr(drawn(24, 6, seed=k))[0] for k in range(6)])
    rows = unit * torch.tensor(planted).double()[:, None, None] * math.sqrt(24 / 6)
    result, arrays = run(rows, order)
    np.testing.assert_allclose(arrays["ratio"], planted, rtol=1e-12)
    np.testing.assert_allclose(arrays["stable_rank"], 6, rtol=1e-12)
    assert (result.fan_out, result.fan_in, result.n_rows) == (24, 6, 6)
    assert result.ratio_first == pytest.approx(0.5)
    assert result.ratio_last == pytest.approx(1.5)
    assert (result.ratio_min, result.ratio_max) == pytest.approx((0.25, 3.0))
    assert result.ratio_mean == pytest.approx(sum(planted) / 6)
    turned = run(rows, order, turned=True)[0]
    assert (turned.fan_out, turned.fan_in) == (6, 24)
    assert turned.ratio_first == pytest.approx(0.5 * 24 / 6)


def test_the_ratio_does_not_depend_on_width_where_it_must_not() -> None:
    """Weights of variance 1 / in are as the condition wants, and their ratio is that of Gaussian ones: 1 + sqrt(in / out)."""
    for m, n in ((400, 400), (800, 400), (200, 400)):
        result, _ = run(drawn(3, m, n) / math.sqrt(n))
        assert result.ratio_mean == pytest.approx(1 + math.sqrt(n / m), rel=0.03)
        assert result.ratio_null == pytest.approx(result.ratio_mean, rel=0.03)
        assert result.stable_rank == pytest.approx(result.stable_rank_null, rel=0.06)


def test_updates_of_rank_one_stand_out() -> None:
    rows = torch.stack([torch.outer(drawn(50, seed=k), drawn(30, seed=9 + k)) for k in range(4)])
    result, arrays = run(rows)
    np.testing.assert_allclose(arrays["stable_rank"], 1, rtol=1e-10)
    expected = [np.linalg.norm(row, 2) / math.sqrt(50 / 30) for row in rows.numpy()]
    np.testing.assert_allclose(arrays["ratio"], expected, rtol=1e-12)
    assert result.ratio_null is not None
    assert result.ratio_mean is not None
    assert result.ratio_mean > 2 * result.ratio_null


def test_zeros_are_counted_and_vectors_are_columns() -> None:
    rows = torch.cat([torch.zeros(4, 12, dtype=torch.float64), torch.ones(2, 12, dtype=torch.float64)])
    result, arrays = run(rows)
    assert (result.n_zero, result.fan_out, result.fan_in) == (4, 12, 1)
    assert (result.ratio_first, result.ratio_last, result.ratio_mean) == (0, 1, 1)
    assert arrays["stable_rank"][:4].isnan().all()
    assert "matrix of one column" in result.caveats[0]
    none = run(torch.zeros(3, 4, 4, dtype=torch.float64))[0]
    assert (none.ratio_mean, none.ratio_min, none.stable_rank, none.ratio_last) == (None, None, None, 0)

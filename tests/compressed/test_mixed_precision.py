"""A layer of rotated and rounded inputs: against a plain loop in whole numbers, and its tensors are all of it."""

import pytest
import torch
from torch import Tensor

from tasks.compressed.layer import Affine
from tasks.compressed.mixed_precision import MixedPrecisionLinear, rounded_rows
from tasks.numerics.weight_codes import rounded


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[MixedPrecisionLinear, Tensor]:
    """With 3 of 10 inputs in 8 bits; and its rotation."""
    turn = torch.linalg.qr(drawn(10, 10, seed=1).double())[0]
    turned = drawn(6, 10, seed=2).double() @ turn
    high, low = rounded(turned[:, :3], 8, None, True), rounded(turned[:, 3:], 4, None, True)
    arrays = {"rotation": turn} | {
        name: torch.cat([getattr(high, name), getattr(low, name)], 1) for name in ("code", "step")
    }
    layer = Affine(drawn(6, 10, seed=2).to(dtype), drawn(6, seed=3).to(dtype) if bias else None)
    result = {"high": 3, "high_bits": 8, "low_bits": 4}
    return MixedPrecisionLinear.of(arrays, result, {}, layer), turn


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_are_rounded_as_whole_numbers_are(bits: int) -> None:
    x = drawn(5, 30) + torch.tensor([0, 0, 2.0, -9, 0])[:, None]
    x[4] = 0
    found = rounded_rows(x, bits)
    for row, other in zip(x.tolist(), found.tolist(), strict=True):
        low, high = min(*row, 0), max(*row, 0)
        step = (high - low) / (2**bits - 1) or 1
        codes = {round(v / step) for v in other}
        assert len(codes) <= 2**bits
        assert max(codes) - min(codes) <= 2**bits - 1
        assert all(abs(a - b) <= 0.5 * step * 1.001 for a, b in zip(row, other, strict=True))
    assert torch.equal(rounded_rows(x[:, None], bits)[:, 0], found)


@pytest.mark.parametrize("bias", [True, False])
def test_what_it_computes_and_holds(bias: bool) -> None:
    layer, turn = made(bias, torch.float64)
    x = drawn(4, 2, 10, seed=4).double()
    weight = layer.affine().weight
    assert torch.linalg.matrix_norm(weight - drawn(6, 10, seed=2)) < 0.2 * torch.linalg.matrix_norm(weight)
    turned = torch.cat([rounded_rows((x @ turn)[..., :3], 8), rounded_rows((x @ turn)[..., 3:], 4)], -1)
    expected = turned @ (weight @ turn).T + (drawn(6, seed=3) if bias else 0)
    torch.testing.assert_close(layer(x).detach(), expected)
    again = MixedPrecisionLinear.empty(**layer.spec())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert layer.stored_bytes == 8 * (100 + 6 * bias) + 6 * (3 + 2) + 6 * (4 + 2)


def test_in_the_dtype_of_a_network() -> None:
    layer, x = made(True)[0], drawn(4, 10, seed=4)
    assert layer(x).dtype == torch.float32
    out = layer.to(torch.bfloat16)(x.bfloat16())
    assert out.dtype == torch.bfloat16

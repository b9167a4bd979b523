"""Layers in codes: bits that come back, what is computed, a state dict that is all of it, and bytes as they are counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tasks.compressed import codes as coded
from tasks.compressed.bits import pack, row_bytes, unpack
from tasks.compressed.codes import Codes
from tasks.compressed.layer import Affine
from tasks.compressed.low_rank import LowRankLinear
from tasks.compressed.quantised import QuantisedLinear, QuantisedLowRank
from tasks.numerics.weight_codes import rounded


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 5), st.integers(0, 100))
def test_codes_come_back(bits: int, inputs: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    code = torch.randint(0, 2**bits, (rows, inputs), dtype=torch.uint8, generator=generator)
    packed = pack(code, bits)
    assert packed.shape == (rows, row_bytes(inputs, bits))
    assert torch.equal(unpack(packed, inputs, bits), code)
    for row, line in zip(code.tolist(), packed.tolist(), strict=True):
        assert sum(c << k * bits for k, c in enumerate(row)) == int.from_bytes(bytes(line), "little")


def made(
    bits: int, group: int | None, symmetric: bool, bias: bool, outputs: int = 11, inputs: int = 21
) -> QuantisedLinear:
    found = rounded(drawn(outputs, inputs).double(), bits, group, symmetric)
    arrays = {"code": found.code, "step": found.step, "zero": found.zero}
    result = {"bits": bits, "group": found.group, "symmetric": symmetric, "corrected": False}
    layer = Affine(torch.zeros(outputs, inputs), drawn(outputs, seed=1) if bias else None)
    return QuantisedLinear.of(arrays, result, {}, layer)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_its_codes_stand_for(
    bits: int, group: int | None, symmetric: bool, bias: bool
) -> None:
    layer, x = made(bits, group, symmetric, bias), drawn(3, 4, 21, seed=2)
    weight = rounded(drawn(11, 21).double(), bits, group, symmetric).weight()
    assert torch.equal(layer.affine().weight, weight)  # exact in float32: float16 times a small whole number
    expected = x.double() @ weight.T + (drawn(11, seed=1).double() if bias else 0)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
    again = QuantisedLinear.empty(**layer.spec())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    groups = 1 if group is None else 3
    per_group = 2 if symmetric else 3
    assert layer.stored_bytes == 11 * (row_bytes(21, bits) + per_group * groups) + (44 if bias else 0)


def test_rows_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = made(4, 8, True, True), drawn(5, 21, seed=2)
    whole = layer(x)
    monkeypatch.setattr(coded, "AT_ONCE", 50)
    torch.testing.assert_close(layer(x), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_rounds_no_step(dtype: torch.dtype) -> None:
    layer, x = made(4, 8, False, True), drawn(5, 21, seed=2)
    expected, before = layer(x), layer.codes.weight()
    layer.to(dtype)
    assert torch.equal(layer.codes.weight(), before)
    assert layer(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(layer(x.to(dtype)).float(), expected, atol=0.1, rtol=0.1)


def test_steps_that_float16_cannot_hold() -> None:
    found = rounded(1e-9 * drawn(3, 8).double(), 4, None, True)
    layer = QuantisedLinear(Codes.of(found.code, found.step, None, 4, 8), None)
    assert layer.spec()["step"] == "float32"
    torch.testing.assert_close(layer.affine().weight, found.weight(), rtol=1e-6, atol=0)
    again = QuantisedLinear.empty(**layer.spec())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.codes.weight(), layer.codes.weight())


@pytest.mark.parametrize("bias", [True, False])
def test_low_rank_in_codes(bias: bool) -> None:
    layer = Affine(drawn(30, 20), drawn(30, seed=1) if bias else None)
    u, s, v = torch.linalg.svd(layer.weight.double(), full_matrices=False)
    given = (
        {"left": u * s, "right": v, "mean": drawn(20, seed=3).double()},
        {"corrected": bias},
        {"rank": 9},
        layer,
    )
    plain, small, x = LowRankLinear.of(*given), QuantisedLowRank.of(*given), drawn(4, 20, seed=2)
    expected = plain.affine().weight
    off = torch.linalg.matrix_norm(small.affine().weight - expected) / torch.linalg.matrix_norm(expected)
    assert 0 < off < 0.01
    torch.testing.assert_close(
        small(x).double(),
        x.double() @ small.affine().weight.T + (plain.bias if bias else 0),
        atol=1e-5,
        rtol=1e-5,
    )
    again = QuantisedLowRank.empty(**small.spec())
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    assert small.stored_bytes == 9 * 50 + 4 * 39 + (120 if bias else 0)


@pytest.mark.parametrize("bits", [3, 8])
def test_near_is_within_half_a_step_and_zeros_stay(bits: int) -> None:
    weight = drawn(5, 12)
    weight[3] = 0
    found = Codes.near(weight, bits)
    assert not found.weight()[3].any()
    step = found.step.view(torch.float32)
    assert ((found.weight() - weight).abs() <= 0.5 * step * (1 + 1e-4)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_at_the_mean_nothing_is_lost(bias: bool) -> None:
    layer = Affine(drawn(11, 21), drawn(11, seed=1) if bias else None)
    found = rounded(layer.weight.double(), 3, None, True)
    arrays = {"code": found.code, "step": found.step, "mean": drawn(21, seed=3)}
    result = {"bits": 3, "group": 21, "symmetric": True, "corrected": True}
    made = QuantisedLinear.of(arrays, result, {}, layer)
    expected = torch.nn.functional.linear(arrays["mean"], layer.weight, layer.bias)
    torch.testing.assert_close(made(arrays["mean"]), expected, atol=1e-5, rtol=1e-5)

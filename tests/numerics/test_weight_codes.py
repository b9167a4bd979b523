"""Weights in codes: half a step at most, zero stays zero, scales that a file can hold, and what cannot be meant."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics.weight_codes import rounded


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(2, 8),
    st.sampled_from([None, 1, 3, 5, 13]),
    st.booleans(),
    st.integers(0, 50),
    st.floats(-12, 12),
)
def test_no_weight_is_off_by_more_than_half_a_step(
    bits: int, group: int | None, symmetric: bool, seed: int, size: float
) -> None:
    weight = (drawn(4, 13, seed=seed) + seed % 3) * 10.0**size
    weight[1, 2], weight[2] = 0, 0
    coded = rounded(weight, bits, group, symmetric)
    of = torch.arange(13) // (group or 13)
    off = (coded.weight() - weight).abs()
    assert (off <= 0.5 * coded.step[:, of] * (1 + 1e-9)).all()
    assert int(coded.code.max()) < 2**bits
    assert coded.weight()[1, 2] == 0
    assert not coded.weight()[2].any()
    assert coded.step.shape == coded.zero.shape == (4, int(of[-1]) + 1)


def test_every_code_by_hand() -> None:
    """Range -7.5 to 7.5 in fifteen steps of (almost) 1; range -3 to 12 about a zero of 3."""
    weight = torch.tensor([[-7.5, -7.1, -0.4, 0.6, 6.9, 7.5]]).double()
    coded = rounded(weight, 4, None, symmetric=True)
    assert coded.code.tolist() == [[1, 1, 8, 9, 15, 15]]
    assert coded.zero.tolist() == [[8]]
    assert float(coded.step) == pytest.approx(1, abs=0.002)
    coded = rounded(torch.tensor([[-3.0, 0, 0.9, 12]]).double(), 4, None, symmetric=False)
    assert coded.code.tolist() == [[0, 3, 4, 15]]
    assert coded.zero.tolist() == [[3]]


def test_steps_have_few_digits_where_float16_reaches() -> None:
    weight = torch.cat([drawn(3, 8), 1e-9 * drawn(1, 8), 1e9 * drawn(1, 8)])
    step = rounded(weight, 4, None, symmetric=True).step
    assert torch.equal(step[:3].half().float(), step[:3])
    assert not torch.equal(step[3:].half().float(), step[3:])


def test_a_group_larger_than_a_row_is_the_row() -> None:
    whole, larger = (rounded(drawn(2, 8), 4, group, symmetric=True) for group in (None, 9))
    assert torch.equal(larger.code, whole.code)
    assert larger.group == 8


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipped_ranges_have_the_least_squared_error(symmetric: bool) -> None:
    weight = drawn(6, 200)
    weight[0, 0], weight[1], weight[2] = 9, 0, torch.tensor([-1.0, 1]).repeat(100)
    for bits in (2, 4, 8):
        whole, clipped = (rounded(weight, bits, 100, symmetric, clip) for clip in (False, True))
        before, after = ((each.weight() - weight).square().sum(1) for each in (whole, clipped))
        assert (after <= before).all()
        assert bits == 8 or after.sum() < 0.95 * before.sum()
        assert after[1] == 0
        assert torch.equal(clipped.step.half().float(), clipped.step)
        for share in (0.9, 0.7, 0.55):
            other = whole._replace(step=(whole.step * share).half().float())
            code = (
                (weight / other.step.repeat_interleave(100, 1)).round() + other.zero.repeat_interleave(100, 1)
            ).clamp(0, 2**bits - 1)
            off = (other._replace(code=code.to(torch.uint8)).weight() - weight).square().sum(1)
            assert (after <= off * 1.02).all()

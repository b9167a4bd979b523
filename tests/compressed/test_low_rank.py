"""A layer as two narrow ones: what it computes, what it stands for, and that its numbers and tensors rebuild it."""

import pytest
import torch

from tasks.compressed.layer import Affine
from tasks.compressed.low_rank import LowRankLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_chosen_rank_and_the_mean(bias: bool, corrected: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, generator=generator)
    layer = Affine(weight, torch.randn(7, generator=generator) if bias else None)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    mean = torch.randn(5, generator=generator).double()
    made = LowRankLinear.of(
        {"left": u * s, "right": v, "mean": mean}, {"corrected": corrected}, {"rank": 2}, layer
    )
    x = torch.randn(3, 4, 5, generator=generator)
    stands_for = made.affine()
    torch.testing.assert_close(
        stands_for.weight.float(), (u[:, :2] * s[:2] @ v[:2]).float(), atol=1e-6, rtol=1e-5
    )
    expected = x @ stands_for.weight.float().T
    if stands_for.bias is not None:
        expected = expected + stands_for.bias.float()
    torch.testing.assert_close(made(x), expected, atol=1e-5, rtol=1e-5)
    assert (stands_for.bias is None) == (not bias and not corrected)
    if corrected:  # at the mean input nothing is lost
        at_mean = torch.nn.functional.linear(mean.float(), weight, layer.bias)
        torch.testing.assert_close(made(mean.float()), at_mean, atol=1e-5, rtol=1e-5)
    again = LowRankLinear.empty(**made.spec())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), made(x))
    assert made.numbers == 2 * 12 + (7 if made.bias is not None else 0)
    assert made.stored_bytes == 4 * made.numbers

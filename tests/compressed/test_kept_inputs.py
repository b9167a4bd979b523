"""A layer without some of its inputs: the layer with zeros there, its tensors are all of it, and none or all may go."""

import pytest
import torch
from torch.nn import functional as F

from tasks.compressed.kept_inputs import KeptInputsLinear
from tasks.compressed.layer import Affine


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gone", [(1, 4), (), (0, 1, 2, 3, 4)])
def test_it_is_the_layer_with_zeros(bias: bool, gone: tuple[int, ...]) -> None:
    layer, located = Affine(drawn(7, 5), drawn(7, seed=1) if bias else None), torch.zeros(5).to(torch.uint8)
    located[list(gone)] = 1
    made = KeptInputsLinear.of({"located": located}, {}, {"rank": 1}, layer)
    weight, x = layer.weight.clone(), drawn(3, 2, 5, seed=2)
    weight[:, list(gone)] = 0
    assert torch.equal(made.affine().weight, weight.double())
    assert (made.affine().bias is None) != bias
    torch.testing.assert_close(made(x), F.linear(x, weight, layer.bias))
    again = KeptInputsLinear.empty(**made.spec())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), made(x))
    assert made.stored_bytes == 4 * (5 - len(gone)) * 8 + 28 * bias


def test_in_the_dtype_of_a_network() -> None:
    layer = Affine(drawn(7, 5).bfloat16(), None)
    made = KeptInputsLinear.of({"located": torch.tensor([0, 1, 0, 0, 0])}, {}, {}, layer)
    assert made(drawn(2, 5).bfloat16()).dtype == torch.bfloat16
    assert made.float()(drawn(2, 5)).dtype == torch.float32
    assert made.kept.tolist() == [0, 2, 3, 4]

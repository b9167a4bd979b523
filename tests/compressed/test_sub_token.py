"""A layer that keeps numbers of sub-tokens: forward and input's gradient exact, weights' gradient that of the coarse input."""

import pytest
import torch
from torch import nn

from tasks.compressed.sub_token import SubTokenLinear


def layers(bias: bool = True) -> tuple[nn.Linear, SubTokenLinear]:
    torch.manual_seed(0)
    layer = nn.Linear(12, 5, bias=bias).double()
    direction = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    return layer, SubTokenLinear(layer, direction)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_gradients(bias: bool, shape: tuple[int, ...]) -> None:
    layer, coarse = layers(bias)
    x = torch.randn(*shape, 12, dtype=torch.float64, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    weigh = torch.randn(*shape, 5, dtype=torch.float64)
    assert torch.equal(coarse(x), layer(again))
    (found,) = torch.autograd.grad((coarse(x) * weigh).sum(), x)
    (expected,) = torch.autograd.grad((layer(again) * weigh).sum(), again)
    assert torch.allclose(found, expected, rtol=1e-13)
    (coarse(x) * weigh).sum().backward()
    run = x.detach().reshape(-1, 3, 4)
    told = ((run * coarse.direction).sum(2, keepdim=True) * coarse.direction).reshape(-1, 12)
    torch.testing.assert_close(layer.weight.grad, weigh.reshape(-1, 5).T @ told)
    if bias:
        torch.testing.assert_close(layer.bias.grad, weigh.reshape(-1, 5).sum(0))


def test_the_input_is_not_kept() -> None:
    """Saved for the backward: three numbers a row, and what does not grow with rows."""
    _, coarse = layers()
    sizes: list[int] = []
    x = torch.randn(100, 12, dtype=torch.float64)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        coarse(x)
    assert sorted(sizes) == [12, 60, 300]


def test_directions_of_another_size() -> None:
    with pytest.raises(ValueError, match="12 inputs"):
        SubTokenLinear(nn.Linear(12, 5), torch.ones(2, 4))

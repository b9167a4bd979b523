"""A layer as a sparse dictionary: what it computes, gradients of what it holds, and that its tensors are all of it."""

import pytest
import torch
from torch import Tensor

from tasks.compressed.layer import Affine
from tasks.compressed.sparse import SparseDictionaryLinear


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[SparseDictionaryLinear, Tensor, Tensor]:
    """A layer, its dictionary [input, atom], and its entries [output, atom]."""
    index = torch.rand(9, 13, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :4].sort(1).values
    arrays = {
        "dictionary": drawn(7, 13).double(),
        "value": drawn(9, 4, seed=2).double(),
        "index": index.int(),
    }
    arrays["value"][3, 1] = 0  # an entry that adds nothing
    layer = Affine(torch.zeros(9, 7, dtype=dtype), drawn(9, seed=3).to(dtype) if bias else None)
    spread = torch.zeros(9, 13).double().scatter_(1, index, arrays["value"])
    return SparseDictionaryLinear.of(arrays, {"corrected": False}, {}, layer), arrays["dictionary"], spread


@pytest.mark.parametrize("bias", [True, False])
def test_what_it_computes_and_holds(bias: bool) -> None:
    layer, dictionary, spread = made(bias)
    x = drawn(2, 5, 7, seed=4)
    weight = spread @ dictionary.T
    torch.testing.assert_close(layer.affine().weight, weight, atol=1e-6, rtol=1e-6)
    expected = x.double() @ weight.T + (drawn(9, seed=3).double() if bias else 0)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
    again = SparseDictionaryLinear.empty(**layer.spec())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert layer.stored_bytes == 4 * (7 * 13 + 9 * 4 + 9 * bias) + 9 * 2
    assert {name for name, _ in layer.named_parameters()} == {"dictionary", "value"} | (
        {"bias"} if bias else set()
    )


def test_gradients_reach_what_it_holds() -> None:
    layer, x = made(True, torch.float64)[0], drawn(5, 7, seed=4).double()
    held = tuple(p.detach().requires_grad_() for p in layer.parameters())
    names = [name for name, _ in layer.named_parameters()]

    def call(*tensors: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), x)
        return out

    assert torch.autograd.gradcheck(call, held)


def test_another_dtype() -> None:
    layer, x = made(True)[0], drawn(5, 7, seed=4)
    expected = layer(x)
    out = layer.to(torch.bfloat16)(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("bias", [True, False])
def test_at_the_mean_nothing_is_lost(bias: bool) -> None:
    index = torch.rand(9, 13, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :4].sort(1).values
    arrays = {
        "dictionary": drawn(7, 13),
        "value": drawn(9, 4, seed=2),
        "index": index,
        "mean": drawn(7, seed=5),
    }
    layer = Affine(drawn(9, 7, seed=6), drawn(9, seed=3) if bias else None)
    made = SparseDictionaryLinear.of(arrays, {"corrected": True}, {}, layer)
    expected = torch.nn.functional.linear(arrays["mean"], layer.weight, layer.bias)
    torch.testing.assert_close(made(arrays["mean"]), expected, atol=1e-5, rtol=1e-5)

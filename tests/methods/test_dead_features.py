"""spectrum.dead_features: a loop over rows, a planted subspace, and a basis that does not fit."""

import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import dead_features
from tasks.numerics import sae_init


def run(
    x: Tensor, basis: Tensor, mean: Tensor | None = None, features: int = 400, active: int = 8
) -> tuple[dead_features.Result, dict[str, Array]]:
    """The method as the engine calls it; every two rows are a sample."""
    config = dead_features.Config(features=features, active=active)
    sample = torch.arange(len(x)) // 2
    mean = torch.zeros(basis.shape[1], dtype=torch.float64) if mean is None else mean
    inputs = Inputs(
        widths={"x": x.shape[1]},
        n_rows=len(x),
        n_samples=len(x) // 2,
        artifacts={"basis": {"basis": basis, "mean": mean}},
    )
    dead_features.check(inputs, config)
    carry, state = dead_features.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = dead_features.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
        state = other if state is None else dead_features.merge(state, other)
    assert state is not None
    return dead_features.finish(state, carry, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_fewer_are_dead_inside() -> None:
    basis = torch.linalg.qr(drawn(64, 6, seed=1))[0].T.contiguous()
    result, _ = run(drawn(2000, 6) @ basis + 5, basis, torch.full((64,), 5.0).double())
    assert result.components == 6
    assert result.dead_inside is not None
    assert result.dead_anywhere is not None
    assert result.dead_anywhere.low is not None
    assert result.dead_inside.value < 0.05
    assert result.dead_anywhere.low > 0.1


def test_counts_are_those_of_a_loop() -> None:
    basis, x, mean = torch.eye(5, dtype=torch.float64)[:2], drawn(50, 5), torch.arange(5).double()
    result, arrays = run(x, basis, mean, features=30, active=3)
    encoder = sae_init.directions(basis, 30).double()
    expected = torch.zeros(30, dtype=torch.int64)
    for row in x - mean:
        for k in torch.argsort(encoder @ row, descending=True)[:3]:
            expected[k] += bool(encoder[k] @ row > 0)
    assert torch.equal(arrays["rows_inside"].values, expected)
    assert result.dead_inside is not None
    assert result.dead_inside.value == float((expected == 0).double().mean())
    assert result.n_rows == 50


def test_a_basis_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MethodError, match="the basis has 4 features, the site has 5"):
        run(drawn(50, 5), torch.eye(4).double())
    with pytest.raises(MethodError, match="do not vary"):
        run(drawn(50, 5), torch.zeros(0, 5).double())
    with pytest.raises(MethodError, match="1 groups"):
        run(drawn(2, 5), torch.eye(5).double())

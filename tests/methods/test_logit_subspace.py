"""spectrum.logit_subspace: distributions come back to 1e-9, from the fewest numbers, and what does not fit is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import logit_subspace
from tasks.numerics import logit_subspace as numerics


def run(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> tuple[logit_subspace.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    config = logit_subspace.Config.model_validate({"bias": None if bias is None else "b"} | options)
    weights = {config.weight: weight} | ({} if bias is None else {"b": bias})
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x), weights=weights)
    logit_subspace.check(inputs, config)
    carry, state = logit_subspace.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = logit_subspace.partial(Block({"x": x[part]}, part, part * 0, part), carry, config)
        state = other if state is None else logit_subspace.merge(state, other)
    assert state is not None
    return logit_subspace.finish(state, carry, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("with_bias", [False, True])
def test_distributions_come_back(with_bias: bool) -> None:
    """2,000 tokens from 33 numbers."""
    weight, hidden = drawn(2000, 32).float(), 3 * drawn(40, 32, seed=1)
    bias = drawn(2000, seed=2) if with_bias else None
    result, arrays = run(hidden, weight, bias, random=True)
    assert (result.tokens, result.width, result.numbers, result.n_rows) == (2000, 32, 33, 40)
    assert result.compression == 2000 / 33
    assert result.error is not None
    assert result.error < 1e-9
    assert result.divergence is not None
    assert abs(result.divergence) < 1e-12
    assert result.growth_random is not None
    assert result.growth < result.growth_random
    tokens = arrays["tokens"].values
    assert len(set(tokens.tolist())) == 33
    logits = hidden @ weight.double().T + (0 if bias is None else bias)
    exact = torch.log_softmax(logits, 1)
    a = np.hstack([weight.double().numpy(), np.ones((2000, 1))])
    own = (exact if bias is None else exact - bias).numpy()
    again = a @ np.linalg.solve(a[tokens], own[:, tokens].T)
    np.testing.assert_allclose(again.T + (0 if bias is None else bias.numpy()), exact, atol=1e-9)
    assert result.error_float32 is not None
    assert result.error_float32 <= result.growth * float(exact.abs().max()) * 2**-24 + 1e-9


def test_growth_is_the_worst_there_can_be() -> None:
    weight = drawn(300, 12)
    choice = numerics.choose(weight)
    a = numerics.design(weight).numpy()
    inverse = a @ np.linalg.inv(a[choice.tokens])
    assert choice.growth == pytest.approx(np.abs(inverse).sum(1).max(), rel=1e-10)
    assert choice.condition == pytest.approx(np.linalg.cond(a[choice.tokens]), rel=1e-8)
    np.testing.assert_allclose(choice.values, np.linalg.svd(a, compute_uv=False), rtol=1e-10)
    assert numerics.growth_of(weight, choice.tokens) == pytest.approx(choice.growth, rel=1e-8)
    assert numerics.growth_of(weight, choice.tokens[:5]) == float("inf")


def test_logits_that_the_network_rounded() -> None:
    weight, hidden = drawn(500, 16).float(), drawn(30, 16, seed=1)
    logits = (hidden @ weight.double().T).float()
    result, _ = run(logits, weight)
    assert result.error is not None
    assert 1e-9 < result.error <= 2 * result.growth * float(logits.abs().max()) * 2**-23
    assert run(torch.log_softmax(logits.double(), 1), weight)[0].error == pytest.approx(
        result.error, rel=1e-4
    )


def test_logits_of_another_network_do_not_come_back() -> None:
    result, _ = run(drawn(30, 500, seed=3), drawn(500, 16))
    assert result.error is not None
    assert result.error > 1


def test_an_unembedding_of_lower_rank_needs_fewer_numbers() -> None:
    weight = drawn(400, 6) @ drawn(6, 16, seed=1)
    result, arrays = run(drawn(30, 16, seed=2), weight)
    assert result.numbers == len(arrays["tokens"].values) == 7
    assert result.error is not None
    assert result.error < 1e-9
    with_constant = torch.cat([weight[:, :15], torch.ones(400, 1).double()], 1)
    assert run(drawn(30, 16, seed=2), with_constant)[0].numbers == 7


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MethodError, match=r"\(50, 8\), expected \[tokens, features\] of which rows of 9"):
        run(drawn(5, 9), drawn(50, 8))
    with pytest.raises(MethodError, match="rows of 8"):
        run(drawn(5, 8), drawn(50, 8), rows="logits")
    with pytest.raises(MethodError, match=r"b has the shape \(8,\), expected \(50,\)"):
        run(drawn(5, 8), drawn(50, 8), drawn(8))
    with pytest.raises(MethodError, match="bytes to decompose"):
        run(drawn(5, 4096), torch.empty(1 << 19, 4096, device="meta"))

"""spectrum.attention_subspace: planted ranks, numpy's own numbers, and weights that cannot be meant."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import attention_subspace
from tasks.numerics import sae_init

NAME = "{module}.weight"


def run(x: Tensor, weight: Tensor, **options: Any) -> tuple[attention_subspace.Result, dict[str, Array]]:
    """The method as the engine calls it; every two rows are a sample."""
    config = attention_subspace.Config.model_validate(options)
    sample = torch.arange(len(x)) // 2
    inputs = Inputs(
        widths={"x": x.shape[1]}, n_rows=len(x), n_samples=int(sample.max()) + 1, weights={NAME: weight}
    )
    attention_subspace.check(inputs, config)
    carry, state = attention_subspace.start(inputs, config), None
    for part in torch.arange(len(x)).tensor_split(3):
        other = attention_subspace.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
        state = other if state is None else attention_subspace.merge(state, other)
    assert state is not None
    return attention_subspace.finish(state, carry, inputs, config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_planted_rank_of_sixty_per_cent() -> None:
    """Outputs of a W_O of rank 0.6 d, with a bias."""
    d, k = 40, 24
    weight = drawn(d, k, seed=1) @ torch.linalg.qr(drawn(d, k, seed=2))[0].T
    x = drawn(6000, d) @ weight.T + drawn(d, seed=3)
    result, arrays = run(x, weight, share=1 - 1e-9)
    assert (result.components, result.weight_rank) == (k, k)
    assert result.components_share == 0.6
    assert result.weight_components == 0.6
    assert result.inside is not None
    assert result.aligned is not None
    assert result.inside.value == pytest.approx(1, abs=1e-12)
    assert result.aligned.value == pytest.approx(1, abs=1e-12)
    assert result.aligned_null == 0.6
    assert result.white > 0.99
    basis = arrays["basis"].values
    torch.testing.assert_close(basis @ basis.T, torch.eye(k, dtype=torch.float64))
    centred = x - x.mean(0)
    torch.testing.assert_close(centred @ basis.T @ basis, centred, atol=1e-9, rtol=0)
    torch.testing.assert_close((centred @ basis.T).std(0), arrays["scale"].values)
    first = sae_init.initial(basis, arrays["mean"].values, 100, dtype=torch.float64)
    torch.testing.assert_close(first.decoder @ basis.T @ basis, first.decoder)
    torch.testing.assert_close(first.offset, x.mean(0))


def test_rows_that_do_not_follow_the_weights() -> None:
    weight = torch.eye(60, dtype=torch.float64)[:, :30]
    result, _ = run(drawn(8000, 60), weight)
    assert result.inside is not None
    assert result.inside.low is not None
    assert result.inside.high is not None
    assert result.inside.low <= 0.5 <= result.inside.high
    assert result.aligned_null == 0.5
    assert result.components_share == pytest.approx(result.white, abs=0.02)


def test_numbers_are_those_of_numpy() -> None:
    x = drawn(400, 9) * 0.6 ** torch.arange(9).double() + 3
    weight = drawn(9, 4, seed=7)
    result, arrays = run(x, weight, share=0.9)
    covariance = np.cov(x.numpy().T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(arrays["eigenvalue"].values, values, rtol=1e-10)
    assert result.components == int(np.argmax(values.cumsum() >= 0.9 * values.sum())) + 1
    u, s, _ = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(arrays["weight_value"].values, s, rtol=1e-12)
    assert result.inside is not None
    assert result.inside.value == pytest.approx(
        np.trace(u.T @ covariance @ u) / np.trace(covariance), rel=1e-10
    )
    share = s**2 / (s**2).sum()
    assert result.weight_effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-12)


def test_rows_that_do_not_vary() -> None:
    result, arrays = run(torch.ones(60, 5).double(), drawn(5, 5))
    assert result.components == 0
    assert (result.inside, result.effective_rank) == (None, None)
    assert arrays["basis"].values.shape == (0, 5)


@pytest.mark.parametrize("shape", [(7, 20), (20,)])
def test_other_weights_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match=r"expected \[20, inputs\]"):
        run(drawn(60, 20), torch.zeros(shape))
    with pytest.raises(MethodError, match="NaN"):
        run(drawn(60, 20), torch.full((20, 4), torch.nan))

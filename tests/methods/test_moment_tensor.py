"""spectrum.moment_tensor: tensors of known terms, independent sources, numpy's own cumulants, and rows that have none."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import moment_tensor
from tasks.numerics import symmetric_tensor


def run(
    x: Tensor, sample: Tensor | None = None, **options: Any
) -> tuple[moment_tensor.Result, dict[str, Array]]:
    """The method as the engine calls it, with its rounds."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = moment_tensor.Config.model_validate(options)
    inputs = Inputs({"x": x.shape[1]}, len(x), len(torch.unique(sample)))
    moment_tensor.check(inputs, config)
    carry: dict[str, Tensor] = moment_tensor.start(inputs, config)
    while True:
        state = None
        for part in torch.arange(len(x)).tensor_split(3):
            other = moment_tensor.partial(Block({"x": x[part]}, sample[part], part, part), carry, config)
            state = other if state is None else moment_tensor.merge(state, other)
        assert state is not None
        following = moment_tensor.update(state, carry, inputs, config)
        if following is None:
            return moment_tensor.finish(state, carry, inputs, config)
        carry = following


def sources(n: int, seed: int = 0) -> np.ndarray:
    """Laplace (excess kurtosis 3), uniform (-1.2), two heaps (-2) and Gaussian (0), of unit variance."""
    rng = np.random.default_rng(seed)
    laplace = rng.laplace(size=n) / np.sqrt(2)
    uniform = rng.uniform(-np.sqrt(3), np.sqrt(3), n)
    return np.stack([laplace, uniform, rng.choice([-1.0, 1.0], n), rng.standard_normal(n)], 1)


@pytest.mark.parametrize(("d", "terms"), [(5, 5), (6, 9), (12, 12)])
def test_terms_of_a_tensor_are_found(d: int, terms: int) -> None:
    """More terms than features too, and weights of both signs."""
    rng = torch.Generator().manual_seed(d)
    v = torch.nn.functional.normalize(torch.randn(terms, d, dtype=torch.float64, generator=rng), dim=1)
    w = torch.linspace(2, 0.5, terms, dtype=torch.float64) * (-1.0) ** torch.arange(terms)
    tensor = torch.einsum("t,ta,tb,tc,td->abcd", w, v, v, v, v)
    found = symmetric_tensor.decompose(tensor, terms, 8, 0)
    cosine = (v @ found.vector.T).abs()
    assert float(cosine.max(1).values.min()) > 1 - 1e-9
    torch.testing.assert_close(found.weight[cosine.argmax(1)], w, rtol=1e-8, atol=0)
    assert found.residual < 1e-9
    assert float(found.value.min()) > 1 - 1e-9
    assert symmetric_tensor.decompose(tensor * 0, terms, 8, 0).residual == 0


def test_independent_sources_are_recovered() -> None:
    s = sources(60_000)
    mixing = np.random.default_rng(4).standard_normal((4, 7))
    x = torch.from_numpy(s @ mixing + 5)
    result, arrays = run(x, components=4)
    assert (result.terms, result.terms_seen, result.components, result.n_rows) == (3, 3, 4, 60_000)
    np.testing.assert_allclose(arrays["weight"].values, [3, -2, -1.2], atol=0.25)
    found = (x - x.mean(0)).numpy() @ arrays["direction"].values.numpy().T
    correlation = np.abs(np.corrcoef(found.T, s.T)[:3, 3:])
    assert correlation[0, 0] > 0.99
    assert correlation[1, 2] > 0.99
    assert correlation[2, 1] > 0.99
    unit = mixing[[0, 2, 1]] / np.linalg.norm(mixing[[0, 2, 1]], axis=1, keepdims=True)
    assert np.abs((arrays["pattern"].values.numpy() * unit).sum(1)).min() > 0.99
    low, high = arrays["low"].values, arrays["high"].values
    assert bool(((low < arrays["weight"].values) & (arrays["weight"].values < high)).all())
    assert float(low[0]) < 3.3
    assert float(high[0]) > 2.7
    assert result.residual < 1.5 * result.residual_noise
    assert result.mutual_cosine < 0.1
    assert result.components_share == pytest.approx(1, rel=1e-9)


def test_one_component_has_its_kurtosis() -> None:
    x = sources(3000)[:, :1] * 7 + 3
    result, arrays = run(torch.from_numpy(x), components=1)
    a = x[:, 0] - x.mean()
    assert float(arrays["weight"].values[0]) == pytest.approx(
        (a**4).mean() / (a**2).mean() ** 2 - 3, rel=1e-9
    )
    assert result.residual < 1e-12


def test_cumulants_are_those_of_a_loop() -> None:
    z = torch.from_numpy(sources(50) - sources(50).mean(0))
    second = z.T @ z / 50
    fourth = torch.einsum("na,nb,nc,nd->abcd", z, z, z, z) / 50
    found = symmetric_tensor.fourth_cumulant(fourth, second)
    c = second.numpy()
    for i, j, k, m in ((0, 0, 0, 0), (0, 1, 1, 2), (3, 2, 1, 0), (1, 1, 3, 3)):
        expected = float((z[:, i] * z[:, j] * z[:, k] * z[:, m]).mean())
        expected -= c[i, j] * c[k, m] + c[i, k] * c[j, m] + c[i, m] * c[j, k]
        assert float(found[i, j, k, m]) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_gaussian_rows_have_no_terms_that_stand_out() -> None:
    seen = 0
    for seed in range(12):
        x = torch.randn(1500, 6, generator=torch.Generator().manual_seed(seed)) @ torch.randn(6, 6)
        result, _ = run(x, components=6)
        seen += result.terms_seen
        assert 0.5 < result.residual_noise < 2
    assert seen <= 3


def test_tokens_of_few_texts_do_not_stand_out() -> None:
    """Gaussian texts of forty tokens that are nearly alike: rows would show terms, texts do not."""
    sample = torch.arange(60).repeat_interleave(40)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=rng)[sample] + 0.1 * torch.randn(2400, 4, generator=rng)
    result, arrays = run(x.double(), sample, components=4)
    assert abs(result.strongest) > result.noise_edge_rows
    assert result.terms_seen == 0
    assert any("nothing stands out" in note for note in result.caveats)
    assert len(arrays["weight"].values) == 1


def test_bad_rows() -> None:
    x = torch.from_numpy(sources(200))
    with pytest.raises(MethodError, match="do not vary"):
        run(torch.ones(50, 3))
    with pytest.raises(MethodError, match="fall into 1 groups"):
        run(x, torch.zeros(200, dtype=torch.int64))
    with pytest.raises(MethodError, match="11 terms, 4 components have 10 at most"):
        run(x, terms=11)
    with pytest.raises(MethodError, match="found 1 rows"):
        run(x[:1])
    constant, arrays = run(torch.cat([x, torch.ones(200, 2).double()], 1), components=6)
    assert constant.components == 4
    assert arrays["direction"].values.shape[1] == 6
    doubled, _ = run(torch.cat([x, x]), components=4, terms=2)
    assert doubled.strongest == pytest.approx(run(x, components=4, terms=2)[0].strongest, rel=1e-6)

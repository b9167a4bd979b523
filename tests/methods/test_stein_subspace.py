"""spectrum.stein_subspace: planted index models, numpy's own matrices, unrelated responses, and labels that say nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import stein_subspace
from tasks.numerics.angles import distances, orthonormal


def run(
    x: Tensor,
    values: dict[str, Tensor],
    classes: dict[str, tuple[str, ...]] | None = None,
    sample: Tensor | None = None,
    **options: Any,
) -> tuple[stein_subspace.Result, dict[str, Array]]:
    """The method as the engine calls it, with its rounds."""
    sample = torch.arange(len(x)) if sample is None else sample
    config = stein_subspace.Config.model_validate(options)
    inputs = Inputs({"x": x.shape[1]}, len(x), len(torch.unique(sample)), categories=classes or {})
    stein_subspace.check(inputs, config)
    carry: dict[str, Tensor] | None = stein_subspace.start(inputs, config)
    while True:
        assert carry is not None
        state = None
        for part in torch.arange(len(x)).tensor_split(3):
            given = {name: each[part] for name, each in values.items()}
            other = stein_subspace.partial(
                Block({"x": x[part]}, sample[part], part, part, given), carry, config
            )
            state = other if state is None else stein_subspace.merge(state, other)
        assert state is not None
        following = stein_subspace.update(state, carry, inputs, config)
        if following is None:
            return stein_subspace.finish(state, carry, inputs, config)
        carry = following


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, d: int, seed: int = 0) -> Tensor:
    """Gaussian rows with a full covariance, far from the origin."""
    return drawn(n, d, seed) @ (drawn(d, d, 77) / math.sqrt(d) + torch.eye(d, dtype=torch.float64)) + 20


def test_odd_index_model_of_several_responses() -> None:
    x, b = correlated(20_000, 12), orthonormal(drawn(2, 12, 5))
    index = (x - x.mean(0)) @ b.T
    y = {
        "a": torch.tanh(3 * index[:, 0]) + 0.1 * drawn(20_000, 1, 2)[:, 0],
        "b": index[:, 1] ** 3 - index[:, 0],
        "c": torch.sigmoid(index.sum(1) * 4) + 9,
    }
    result, arrays = run(x, y, labels=("a", "b", "c"), axes=12)
    assert (result.dimension, result.dimension_seen, result.axes) == (2, 2, 12)
    apart = distances(arrays["direction"].values, b)
    assert apart.projection < 0.15
    assert result.subspace_error is not None
    assert apart.chordal**2 < 6 * result.subspace_error
    assert result.largest > 10 * result.noise_edge
    low, high = arrays["low"].values, arrays["high"].values
    assert bool(((low < arrays["singular_value"].values) & (arrays["singular_value"].values < high)).all())


def test_even_functions_need_the_second_order() -> None:
    x, b = correlated(30_000, 8), orthonormal(drawn(1, 8, 5))
    index = (x - x.mean(0)) @ b[0]
    y = {"y": torch.cos(2 * index / index.std())}
    first, _ = run(x, y, labels=("y",), axes=8)
    assert first.dimension_seen == 0
    assert any("no direction stands out" in note for note in first.caveats)
    second, arrays = run(x, y, labels=("y",), axes=8, order=2)
    assert second.dimension_seen == 1
    apart = distances(arrays["direction"].values[:1], b).projection
    assert second.subspace_error is not None
    assert apart < 0.2
    assert apart**2 < 6 * second.subspace_error


def test_first_order_is_that_of_numpy() -> None:
    x = correlated(300, 5)
    label = (x[:, 0] > x[:, 0].median()).long() + (x[:, 1] > 22).long()
    result, arrays = run(x, {"c": label}, {"c": ("p", "q", "r")}, components=2, axes=5)
    a, y = x.numpy() - x.numpy().mean(0), np.eye(3)[label.numpy()]
    y = (y - y.mean(0)) / y.std(0)
    root = np.linalg.cholesky(np.linalg.inv(a.T @ a / 300))
    singular = np.linalg.svd(y.T @ a / 300 @ root, compute_uv=False)
    np.testing.assert_allclose(arrays["singular_value"].values, singular[:2], rtol=1e-9)
    span = np.linalg.inv(a.T @ a) @ a.T @ y
    basis = torch.from_numpy(np.linalg.svd(span, full_matrices=False)[0][:, :2].T.copy())
    assert distances(arrays["direction"].values, basis).projection < 1e-7
    np.testing.assert_allclose(
        arrays["strength"].values.square().sum(1),
        np.diag(y.T @ a @ np.linalg.solve(a.T @ a, a.T @ y)) / 300,
        rtol=1e-9,
    )
    assert result.responses == ("c=p", "c=q", "c=r")


def test_second_order_is_that_of_numpy() -> None:
    x, y = correlated(200, 4), drawn(200, 1, 3)[:, 0]
    _, arrays = run(x, {"y": y}, labels=("y",), axes=4, order=2, components=4)
    a, u = x.numpy() - x.numpy().mean(0), y.numpy()
    u = (u - u.mean()) / u.std()
    values, vectors = np.linalg.eigh(a.T @ a / 200)
    z = a @ vectors / np.sqrt(values)
    t = np.einsum("n,na,nb->ab", u, z, z) / 200
    np.testing.assert_allclose(arrays["singular_value"].values, np.linalg.svd(t, compute_uv=False), rtol=1e-8)


def test_unrelated_responses_do_not_stand_out() -> None:
    seen = 0
    for seed in range(10):
        x, y = (
            correlated(500, 20, seed),
            {"a": drawn(500, 1, 100 + seed)[:, 0], "b": drawn(500, 1, 200 + seed)[:, 0]},
        )
        for order in (1, 2):
            seen += run(x, y, labels=("a", "b"), order=order, axes=20)[0].dimension_seen
    assert seen <= 2


def test_tokens_share_the_label_of_their_text() -> None:
    """Labels that say nothing of 40 texts stand out of rows, not of texts."""
    sample = torch.arange(40).repeat_interleave(50)
    x = drawn(40, 6, 1)[sample] + 0.3 * drawn(2000, 6, 2)
    result, _ = run(x, {"y": drawn(40, 1, 3)[sample, 0]}, labels=("y",), sample=sample)
    assert result.largest > result.noise_edge_rows
    assert result.dimension_seen == 0


def test_what_says_nothing_is_counted_or_refused() -> None:
    x, label = drawn(100, 4), torch.arange(100) % 2
    missing = torch.where(torch.arange(100) < 10, -1, label)
    result, _ = run(x, {"c": missing}, {"c": ("p", "q", "never")})
    assert (result.n_rows, result.n_unlabelled, result.constant) == (90, 10, ("c=never",))
    with pytest.raises(MethodError, match="one class only"):
        run(x, {"c": label * 0}, {"c": ("p", "q")})
    with pytest.raises(MethodError, match="names no classes"):
        run(x, {"y": x[:, 0]})
    with pytest.raises(MethodError, match="no label 'z'"):
        run(x, {"c": label}, {"c": ("p", "q")}, labels=("z",))
    with pytest.raises(MethodError, match="1 groups of samples"):
        run(x, {"c": label}, {"c": ("p", "q")}, sample=torch.zeros(100, dtype=torch.int64))
    gap = x[:, 0].clone()
    gap[:5] = math.nan
    assert run(x, {"y": gap}, labels=("y",))[0].n_unlabelled == 5


def test_constant_features_are_left_out() -> None:
    x = torch.cat([drawn(400, 3), torch.ones(400, 2).double()], 1)
    result, arrays = run(x, {"y": x[:, 0] ** 3}, labels=("y",), axes=5)
    assert result.axes == 3
    assert arrays["direction"].values[0, 3:].abs().max() == 0

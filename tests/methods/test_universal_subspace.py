"""geometry.universal_subspace: tensor unfoldings by hand, a planted family, random weights, and held-out models by least squares."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import universal_subspace as method
from tasks.numerics import wishart

SHAPE = (6, 9)


def run(weights: np.ndarray, **options: Any) -> tuple[method.Result, dict[str, np.ndarray]]:
    """Of [model, row, column]."""
    rows = torch.from_numpy(weights.reshape(len(weights), -1))
    index = torch.arange(len(rows))
    inputs = Inputs(
        widths={"x": rows.shape[1]}, n_rows=len(rows), n_samples=len(rows), shapes={"x": weights.shape[1:]}
    )
    result, arrays = method.solve(Block({"x": rows}, index, index, index), inputs, method.Config(**options))
    return result, {name: np.asarray(a.values) for name, a in arrays.items() if isinstance(a, Array)}


def family(n: int, k: int, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Models around a common one in k directions of whole weights."""
    rng = np.random.default_rng(seed)
    base, directions = rng.standard_normal(SHAPE), rng.standard_normal((k, *SHAPE))
    found: np.ndarray = (
        base
        + np.tensordot(rng.standard_normal((n, k)), directions, 1)
        + noise * rng.standard_normal((n, *SHAPE))
    )
    return found


def test_spectra_are_those_of_the_unfoldings() -> None:
    w = family(12, 4, 0.3)
    result, arrays = run(w)
    centred = w - w.mean(0)
    for name, axis in (("share", 0), ("share_rows", 1), ("share_columns", 2)):
        unfolded = np.moveaxis(centred, axis, 0).reshape(w.shape[axis], -1)
        values = np.linalg.svd(unfolded, compute_uv=False) ** 2
        np.testing.assert_allclose(arrays[name], values / values.sum(), atol=1e-13)
        count = int((np.cumsum(values) < 0.9 * values.sum()).sum()) + 1
        field = "components" + ("" if axis == 0 else name.removeprefix("share"))
        assert getattr(result, field) == count
    left = np.linalg.svd(np.moveaxis(centred, 1, 0).reshape(6, -1))[0][:, : len(arrays["rows_basis"])]
    found = arrays["rows_basis"]
    np.testing.assert_allclose(found.T @ found, left @ left.T, atol=1e-10)


def test_a_planted_family_is_found_and_holds_an_unseen_model() -> None:
    result, _ = run(family(40, 3), share=0.999999)
    assert result.components == 3
    assert result.held_out == pytest.approx(1)
    assert result.components_null > 30
    assert result.held_out_null is not None
    assert result.held_out_null < 0.9


def test_random_weights_are_as_the_null() -> None:
    w = np.random.default_rng(1).standard_normal((30, 20, 30))
    result, arrays = run(w)
    assert result.components == pytest.approx(result.components_null, abs=1)
    assert result.top_share == pytest.approx(result.top_share_null, rel=0.1)
    assert result.held_out == pytest.approx(result.held_out_null, abs=0.02)
    assert result.components_rows == result.components_rows_null
    assert result.components_columns is not None
    assert result.components_columns_null == pytest.approx(result.components_columns, abs=1)
    assert result.held_out_modes == pytest.approx(result.held_out_modes_null, abs=0.03)
    np.testing.assert_allclose(arrays["share"], arrays["share_null"], atol=0.01)


@pytest.mark.parametrize("center", [True, False])
def test_held_out_shares_are_those_of_projections(center: bool) -> None:
    w = family(11, 4, 0.5, seed=3)
    result, arrays = run(w, folds=11, center=center)
    for model in range(11):
        rest = np.delete(w, model, 0).reshape(10, -1)
        mean = rest.mean(0) if center else 0 * rest[0]
        _, s, v = np.linalg.svd(rest - mean, full_matrices=False)
        k = int((np.cumsum(s**2) < 0.9 * (s**2).sum()).sum()) + 1
        one = w[model].ravel() - mean
        assert arrays["held_out"][model] == pytest.approx(
            np.linalg.norm(v[:k] @ one) ** 2 / (one @ one), rel=1e-9
        )
        others = np.delete(w, model, 0) - mean.reshape(SHAPE)
        bases = []
        for axis in (1, 2):
            u, s, _ = np.linalg.svd(
                np.moveaxis(others, axis, 0).reshape(w.shape[axis], -1), full_matrices=False
            )
            bases.append(u[:, : int((np.cumsum(s**2) < 0.9 * (s**2).sum()).sum()) + 1])
        inner = bases[0].T @ one.reshape(SHAPE) @ bases[1]
        assert arrays["held_out_modes"][model] == pytest.approx((inner**2).sum() / (one @ one), rel=1e-8)
    assert result.held_out == pytest.approx(arrays["held_out"].mean())
    assert result.held_out_low is not None
    assert result.held_out_low < arrays["held_out"].mean()


def test_equal_models_have_nothing_to_share() -> None:
    result, arrays = run(np.repeat(family(1, 1), 5, 0))
    assert (result.components, result.top_share, result.held_out, result.n_identical) == (0, None, None, 5)
    assert np.isnan(arrays["held_out"]).all()
    with pytest.raises(MethodError, match="found 2 models, expected at least 3"):
        run(family(2, 1))


def test_vectors_and_wide_modes_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(family(12, 2).reshape(12, 54, 1))
    assert any("no shape of a matrix" in note for note in result.caveats)
    monkeypatch.setattr(method, "WIDEST", 8)
    narrow, arrays = run(family(12, 2))
    assert narrow.components_columns is None
    assert narrow.components_rows is not None
    assert narrow.held_out_modes is None
    assert arrays["columns_basis"].shape == (0, 9)


@pytest.mark.parametrize(("size", "freedom"), [(3, 50), (4, 2)])
def test_drawn_products_have_the_mean_and_variance_of_rows(size: int, freedom: int) -> None:
    random = wishart.generator(0)
    draws = torch.stack([wishart.drawn(size, freedom, random) for _ in range(4000)])
    mean, spread = draws.mean(0), draws.var(0)
    expected = freedom * torch.eye(size).double()
    assert float((mean - expected).abs().max()) < 0.1 * freedom**0.5
    np.testing.assert_allclose(spread, freedom * (1 + np.eye(size)), rtol=0.2)

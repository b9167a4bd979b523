"""spectrum.pca against LAPACK, scikit-learn's labels of the same quantities, and planted subspaces."""

import math
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.decomposition import PCA

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.spectrum import pca, summary
from tasks.numerics.angles import distances


def block(x: torch.Tensor, weight: torch.Tensor | None = None) -> Block:
    index = torch.arange(len(x))
    return Block({"x": x}, index, torch.zeros_like(index), index, weight=weight)


def run(
    x: torch.Tensor, config: pca.Config, pieces: int = 3, weight: torch.Tensor | None = None
) -> tuple[pca.Result, dict[str, Array]]:
    """The method as the engine calls it: blocks in order, then one finish."""
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    carry = pca.start(inputs, config)
    parts = torch.arange(len(x)).tensor_split(pieces)
    blocks = [block(x[part], None if weight is None else weight[part]) for part in parts]
    state = pca.partial(blocks[0], carry, config)
    for other in blocks[1:]:
        state = pca.merge(state, pca.partial(other, carry, config))
    return pca.finish(state, carry, inputs, config)


def planted(rows: int, width: int, rank: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows near a subspace, far from the origin; and the subspace."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0].T
    draws = torch.randn(rows, rank, generator=generator, dtype=torch.float64) * torch.arange(rank + 1, 1, -1)
    rest = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return draws @ basis + noise * rest + 50, basis


def test_against_scikit_learn() -> None:
    x, _ = planted(400, 20, 5, 0.5)
    oracle = PCA(n_components=6, svd_solver="full").fit(x.numpy())
    result, arrays = run(x, pca.Config(components=6))
    np.testing.assert_allclose(result.eigenvalues[:6], oracle.explained_variance_, rtol=1e-12)
    np.testing.assert_allclose(arrays["explained"].values, oracle.explained_variance_ratio_, rtol=1e-12)
    np.testing.assert_allclose(arrays["mean"].values, oracle.mean_, rtol=1e-13)
    np.testing.assert_allclose(arrays["components"].values.abs(), np.abs(oracle.components_), atol=1e-10)
    assert result.explained == pytest.approx(oracle.explained_variance_ratio_.sum(), rel=1e-12)
    assert (result.n_rows, result.width, result.components) == (400, 20, 6)


def test_planted_subspace_is_found() -> None:
    x, basis = planted(5000, 40, 4, 0.01)
    result, arrays = run(x.float(), pca.Config(components=4))
    found = distances(arrays["components"].values, basis)
    assert found.projection < 0.01
    assert result.subspace_error is not None
    assert found.chordal**2 < 3 * result.subspace_error
    assert result.explained == pytest.approx(1, abs=1e-3)
    assert arrays["block"].values.tolist() == [0, 1, 2, 3]


def test_arrays_have_the_declared_names_and_axes() -> None:
    x, _ = planted(100, 7, 2, 1.0)
    _, arrays = run(x, pca.Config(components=3))
    sizes = {"order": 7, "component": 3, "feature": 7}
    assert {name: array.dims for name, array in arrays.items()} == pca.ARRAYS
    for array in arrays.values():
        assert tuple(array.values.shape) == tuple(sizes[dim] for dim in array.dims)
    low, high = arrays["eigenvalue_low"].values, arrays["eigenvalue_high"].values
    assert bool(((low < arrays["eigenvalue"].values) & (arrays["eigenvalue"].values < high)).all())


def test_the_state_is_shared_with_summary() -> None:
    inputs = Inputs(widths={"x": 5}, n_rows=9, n_samples=9)
    config = pca.Config(components=3)
    carry = pca.start(inputs, config)
    assert carry == summary.start(inputs, summary.Config()) == {}
    made = pca.reduces(carry, config)
    assert (made.partial, made.merge) == (summary.partial, summary.merge)
    assert made.options == summary.state_config(summary.Config(top=2))
    assert pca.reduces(carry, pca.Config(precision="float32")).options != made.options


@pytest.mark.parametrize(("asked", "kept"), [(None, 7), (1, 1), (7, 7)])
def test_components_kept(asked: int | None, kept: int) -> None:
    x, _ = planted(100, 7, 2, 1.0)
    assert run(x, pca.Config(components=asked))[0].components == kept


def test_directions_lost_in_rounding_are_never_kept() -> None:
    x, basis = planted(300, 30, 4, 0.0)
    result, arrays = run(x, pca.Config(components=10))
    assert result.resolved == result.components == 4
    assert arrays["components"].values.shape == (4, 30)
    assert bool(arrays["eigenvalue"].values[4:].isnan().all())
    assert distances(arrays["components"].values, basis).projection < 1e-9
    assert any("26 eigenvalues lie below" in note for note in result.caveats)


def test_fewer_rows_than_features() -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    result, arrays = run(x, pca.Config(), pieces=6)
    assert result.resolved == result.components == 5
    assert result.explained == pytest.approx(1, rel=1e-12)
    gram = arrays["components"].values @ arrays["components"].values.T
    torch.testing.assert_close(gram, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert any("6 effective rows for 50 features" in note for note in result.caveats)


def test_one_feature() -> None:
    x = torch.randn(100, 1, dtype=torch.float64)
    result, arrays = run(x, pca.Config())
    assert result.eigenvalues[0] == pytest.approx(float(x.var()), rel=1e-13)
    assert arrays["components"].values.tolist() == [[1.0]]


def test_no_variance() -> None:
    result, arrays = run(torch.full((50, 4), 0.1), pca.Config())
    assert (result.components, result.resolved, result.explained) == (0, 0, None)
    assert result.eigenvalues == ()
    assert arrays["components"].values.shape == (0, 4)
    torch.testing.assert_close(arrays["mean"].values, torch.full((4,), 0.1).double(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_are_refused(rows: int) -> None:
    with pytest.raises(MethodError, match=f"found {rows} rows, expected at least 2"):
        run(torch.randn(rows, 4), pca.Config(), pieces=1)


def test_too_many_components_are_refused_before_reading() -> None:
    inputs = Inputs(widths={"x": 4}, n_rows=10, n_samples=10)
    with pytest.raises(MethodError, match="asked for 5 components, but the site has 4"):
        pca.check(inputs, pca.Config(components=5))


@pytest.mark.parametrize("wrong", [{"components": 0}, {"confidence": 1.0}, {"precision": "half"}, {"k": 3}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        pca.Config.model_validate(wrong)


def test_rows_that_are_not_finite_are_refused() -> None:
    x = torch.randn(10, 4)
    x[3, 1] = math.nan
    with pytest.raises(MethodError, match="NaN"):
        run(x, pca.Config(), pieces=1)


def test_about_the_origin() -> None:
    x, _ = planted(400, 12, 3, 0.5)
    result, arrays = run(x, pca.Config(components=2, center=False))
    singular = np.linalg.svd(x.numpy(), compute_uv=False) ** 2 / len(x)
    np.testing.assert_allclose(result.eigenvalues, singular[:10], rtol=1e-10)
    assert not arrays["mean"].values.any()


@pytest.mark.parametrize("kind", ["count", "reliability"])
def test_weights_mean_what_the_option_says(kind: str) -> None:
    x, _ = planted(200, 5, 2, 0.5)
    weight = torch.randint(1, 4, (200,), generator=torch.Generator().manual_seed(0)).double()
    result, _ = run(x, pca.Config.model_validate({"weights": kind}), weight=weight)
    named = {"fweights": weight.long().numpy()} if kind == "count" else {"aweights": weight.numpy()}
    expected = np.linalg.eigvalsh(np.cov(x.numpy().T, **named))[::-1]
    np.testing.assert_allclose(result.eigenvalues, expected, rtol=1e-12)
    effective = float(weight.sum()) if kind == "count" else float(weight.sum() ** 2 / weight.square().sum())
    assert result.n_eff == pytest.approx(effective)


def test_any_partition_agrees() -> None:
    x, _ = planted(500, 16, 4, 0.3)
    whole, arrays = run(x.float(), pca.Config(components=4), pieces=1)
    for pieces in (2, 7, 500):
        result, others = run(x.float(), pca.Config(components=4), pieces=pieces)
        np.testing.assert_allclose(result.eigenvalues, whole.eigenvalues, rtol=1e-12)
        assert distances(others["components"].values, arrays["components"].values).projection < 1e-12
        torch.testing.assert_close(
            others["components"].values, arrays["components"].values, atol=1e-9, rtol=0
        )


def test_float32_products_stay_close() -> None:
    x, _ = planted(3000, 30, 4, 0.3)
    exact, fast = (
        run(x.float(), pca.Config.model_validate({"precision": p}))[0] for p in ("float64", "float32")
    )
    gap = np.abs(np.subtract(exact.eigenvalues, fast.eigenvalues)).max()
    assert 0 < gap <= 2e-7 * exact.eigenvalues[0]
    assert fast.floor > 1e4 * exact.floor


def test_result_is_json_and_pickles() -> None:
    x, _ = planted(100, 6, 2, 0.3)
    result, _ = run(x, pca.Config())
    assert pca.Result.model_validate_json(result.model_dump_json()) == result
    assert pickle.loads(pickle.dumps(result)) == result
    assert pickle.loads(pickle.dumps(pca.partial)) is pca.partial


@pytest.mark.gpu
def test_gpu_agrees() -> None:
    x, _ = planted(2000, 32, 4, 0.3)
    here, arrays = run(x.float(), pca.Config(components=4))
    there, others = run(x.float().cuda(), pca.Config(components=4))
    np.testing.assert_allclose(there.eigenvalues, here.eigenvalues, rtol=1e-10)
    assert distances(others["components"].values.cpu(), arrays["components"].values).projection < 1e-10

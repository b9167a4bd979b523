"""Rows given to subspaces that were found on others: planted unions, against differences in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from schemas.errors import MethodError
from tasks.methods.clustering import assign
from tasks.methods.contract import Block, Inputs
from tests.methods import cases
from tests.methods.cases import Case
from tests.methods.test_k_subspaces import clustered, union
from tests.methods.test_mixture import covariances, mixed, overlapping


def assigned(fit: cases.Answer, x: np.ndarray, of: np.ndarray | None = None) -> cases.Answer:
    index = torch.arange(len(x))
    labels = {} if of is None else {"kind": torch.from_numpy(of)}
    names = {} if of is None else {"kind": tuple(map(str, range(int(of.max()) + 1)))}
    results = {"subspaces": fit.result.model_dump()}
    inputs = Inputs({"x": x.shape[1]}, len(x), len(x), names, {"subspaces": fit.arrays}, results)
    config = assign.Config(label=None if of is None else "kind")
    assign.check(inputs, config)
    block = Block({"x": torch.from_numpy(x)}, index, 0 * index, index, labels)
    return cases.run(Case(assign, config, inputs, block), cases.cut(block, [len(x) // 3]))


@pytest.mark.parametrize("options", [{}, {"kind": "linear"}, {"unit_length": True}])
def test_new_rows_go_to_the_subspaces_that_they_are_drawn_from(options: dict[str, Any]) -> None:
    x, of = union(0, 3, 2, 20, 300, noise=0.05, offset=0.0 if options else 2.0)
    fit = clustered(x[:450], of[:450], clusters=3, dimension=2, starts=5, **options)
    answer = assigned(fit, x[450:], of[450:])
    result = answer.result
    assert result.n_rows == 450
    assert result.accuracy >= 0.98
    assert result.accuracy == pytest.approx(fit.result.accuracy, abs=0.02)
    rows = x[450:]
    if options.get("unit_length"):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    left = rows[:, None] - fit.arrays["mean"].numpy()
    basis = fit.arrays["basis"].numpy()
    left = left - np.einsum("nkd,kdf->nkf", np.einsum("nkf,kdf->nkd", left, basis), basis)
    distance = np.linalg.norm(left, axis=2)
    np.testing.assert_array_equal(answer.arrays["cluster"], distance.argmin(1))
    two = np.sort(distance, axis=1)[:, :2]
    np.testing.assert_allclose(answer.arrays["distance"], two[:, 0], rtol=1e-6)
    np.testing.assert_allclose(answer.arrays["margin"], 1 - two[:, 0] / two[:, 1], rtol=1e-5, atol=1e-6)
    assert result.distance_rms == pytest.approx(np.sqrt((two[:, 0] ** 2).mean()), rel=1e-6)
    assert result.distance_max == pytest.approx(two[:, 0].max(), rel=1e-6)
    assert result.near_ties == pytest.approx((answer.arrays["margin"].numpy() < 0.05).mean())


def test_rows_in_the_subspace_have_all_the_margin_and_rows_between_none() -> None:
    x, _ = union(1, 2, 1, 6, 50)
    fit = clustered(x, clusters=2, dimension=1, kind="linear", starts=5)
    first, second = fit.arrays["basis"][:, 0].numpy()
    between = first + np.sign(first @ second) * second
    answer = assigned(fit, np.stack([3 * first, -second, between]))
    assert answer.arrays["cluster"][:2].tolist() == [0, 1]
    np.testing.assert_allclose(answer.arrays["margin"], [1, 1, 0], atol=1e-6)
    assert answer.result.accuracy is None


def test_rows_in_two_subspaces_have_no_margin() -> None:
    """Rounding of their distances to either says nothing."""
    q = np.linalg.qr(np.random.default_rng(2).standard_normal((12, 12)))[0]
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.standard_normal((40, 3)) @ q[part] for part in ([0, 1, 2], [0, 3, 4])])
    fit = clustered(x, clusters=2, dimension=3, kind="linear", starts=5)
    shared = assigned(fit, rng.standard_normal((30, 1)) * q[0])
    assert shared.arrays["margin"].tolist() == [0] * 30
    assert shared.result.near_ties == 1


@pytest.mark.parametrize("options", [{}, {"kind": "linear", "noise": "shared"}])
def test_a_mixture_gives_each_row_its_likeliest_component(options: dict[str, Any]) -> None:
    x, of, _ = overlapping(0, (0.2, 0.4, 0.8), each=400)
    fit = mixed(x[:600], of[:600], clusters=3, dimension=2, starts=4, **options)
    arrays = {name: values.numpy() for name, values in fit.arrays.items()}
    normal = GaussianMixture(3)
    normal.weights_, normal.means_ = arrays["weight"], arrays["mean"]
    normal.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances(arrays)))
    answer, chance = assigned(fit, x[600:], of[600:]), normal.predict_proba(x[600:])
    np.testing.assert_array_equal(answer.arrays["cluster"], chance.argmax(1))
    np.testing.assert_allclose(answer.arrays["posterior"], chance.max(1), rtol=1e-6)
    np.testing.assert_allclose(answer.arrays["log_likelihood"], normal.score_samples(x[600:]), rtol=1e-9)
    assert answer.result.posterior_mean == pytest.approx(chance.max(1).mean(), rel=1e-6)
    assert answer.result.accuracy == pytest.approx(fit.result.accuracy, abs=0.05)
    own = assigned(fit, x[:600])
    assert own.result.log_likelihood == pytest.approx(fit.result.log_likelihood, rel=1e-12)
    np.testing.assert_array_equal(np.bincount(own.arrays["cluster"], minlength=3), fit.arrays["size"].numpy())


def test_posteriors_of_nearest_subspaces_are_those_of_their_clusters_spectra() -> None:
    x, of = union(0, 3, 2, 12, 200, noise=0.4, offset=1.0)
    fit = clustered(x, of, clusters=3, dimension=2, starts=5)
    value, basis = fit.arrays["eigenvalue"].numpy(), fit.arrays["basis"].numpy()
    size = fit.arrays["size"].numpy()
    noise = (size @ value[:, 2:].sum(1)) / (10 * size.sum())
    spread = np.einsum("kdf,kd,kdg->kfg", basis, value[:, :2] - noise, basis) + noise * np.eye(12)
    means = fit.arrays["mean"].numpy()
    logs = [
        np.log(n / size.sum()) + multivariate_normal(m, c).logpdf(x)
        for n, m, c in zip(size, means, spread, strict=True)
    ]
    answer = assigned(fit, x)
    density = logsumexp(logs, 0)
    np.testing.assert_allclose(answer.arrays["log_likelihood"], density, rtol=1e-9)
    at = np.exp(np.array(logs)[answer.arrays["cluster"].numpy(), np.arange(len(x))] - density)
    np.testing.assert_allclose(answer.arrays["posterior"], at, rtol=1e-5, atol=1e-12)


def test_rows_that_fit_nothing_have_the_lowest_likelihood() -> None:
    x, _ = union(3, 3, 2, 20, 200, noise=0.2)
    odd = x[:10] @ np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))[0]
    for fit in (mixed(x, clusters=3, dimension=2, starts=4), clustered(x, clusters=3, dimension=2, starts=4)):
        likelihood = assigned(fit, np.concatenate([x, odd])).arrays["log_likelihood"]
        assert sorted(torch.argsort(likelihood)[:10].tolist()) == list(range(600, 610))


def test_subspaces_without_rows_take_none() -> None:
    x = np.zeros((60, 5))
    x[:30, 0] = 1.0
    fit = clustered(x + 7, clusters=4, dimension=1)
    assert fit.result.clusters < 4
    near_origin = np.zeros((3, 5)) + 0.01
    answer = assigned(fit, near_origin)
    assert int(answer.arrays["cluster"].max()) < fit.result.clusters
    assert bool(answer.arrays["log_likelihood"].isfinite().all())


def test_refusals() -> None:
    fit = clustered(union(0, 2, 2, 8, 20)[0], clusters=2, dimension=2)
    with pytest.raises(MethodError, match="subspaces have 8 features, the site has 5"):
        assigned(fit, np.zeros((4, 5)))
    with pytest.raises(MethodError, match="NaN"):
        assigned(fit, np.full((4, 8), np.nan))

"""Spread rows and their directions against full matrices, both forms of Z, and the rounding."""

import itertools

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer

from tasks.numerics import attributed_graphs as ag
from tasks.numerics.graphs import Matrix, conductance

HOPS, POWER = 4, 0.7


def given(seed: int = 0, n: int = 30, d: int = 8, low: float = 0.0) -> tuple[Matrix, np.ndarray]:
    """A graph with a row that has no edge, and rows."""
    rng = np.random.default_rng(seed)
    a = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.2), 1)
    a[:, -1] = 0
    return Matrix(a + a.T), rng.uniform(low, 1, (n, d))


def dense(graph: Matrix, x: np.ndarray, power: float = POWER, hops: int = HOPS) -> np.ndarray:
    """Z as it is written."""
    looped = graph.toarray() + np.eye(len(x))
    root = np.diag(looped.sum(1) ** -0.5)
    p = root @ looped @ root
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    f = np.diag((unit @ unit.T @ np.ones(len(x))) ** -0.5) @ unit
    terms = [power**t * np.linalg.matrix_power(p, t) @ f for t in range(hops + 1)]
    share = 1 / (hops + 1) if power == 1 else (1 - power) / (1 - power ** (hops + 1))
    return np.asarray(share * np.sum(terms, axis=0))


def spread(graph: Matrix, x: np.ndarray, explicit: bool, power: float = POWER, hops: int = HOPS) -> ag.Spread:
    return ag.spread(ag.propagation(graph), ag.one_degree(x)[0], power, hops, explicit)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(("power", "hops"), [(0.7, 4), (1.0, 3), (1.7, 6), (0.9, 0)])
def test_both_forms_are_the_sum_as_it_is_written(explicit: bool, power: float, hops: int) -> None:
    graph, x = given()
    z, expected = spread(graph, x, explicit, power, hops), dense(graph, x, power, hops)
    np.testing.assert_allclose(z.forward(np.eye(x.shape[1])), expected, atol=1e-12)
    np.testing.assert_allclose(z.backward(np.eye(len(x))), expected.T, atol=1e-12)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("power", [3.0, 1e-6])
def test_powers_beyond_float64_are_the_sum_too(explicit: bool, power: float) -> None:
    """Along the eigenvectors of P, with shares of walks in a wider format."""
    graph, x = given()
    values, vectors = np.linalg.eigh(ag.propagation(graph).toarray())
    share = np.longdouble(power) ** np.arange(1001)
    share = (share / share.sum()).astype(np.float64)
    factor = np.polynomial.polynomial.polyval(values, share)
    expected = vectors * factor @ vectors.T @ ag.one_degree(x)[0]
    found = spread(graph, x, explicit, power, 1000).forward(np.eye(x.shape[1]))
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("n", [30, 420])
def test_directions_are_left_singular_vectors(n: int) -> None:
    graph, x = given(1, n)
    found = ag.by_conductance(spread(graph, x, False), 5, 0)
    u, s, _ = np.linalg.svd(dense(graph, x), full_matrices=False)
    np.testing.assert_allclose(found.values, s[:5] ** 2, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * u[:, :5], axis=0)), 1, rtol=1e-6)


@pytest.mark.parametrize("n", [30, 420])
@pytest.mark.parametrize("resolution", [1.0, 0.5])
def test_directions_are_those_of_the_modularity_matrix(n: int, resolution: float) -> None:
    graph, x = given(2, n)
    z = dense(graph, x)
    s = np.sqrt(z.sum(1))[:, None] * z
    s = s @ s.T
    w = s.sum(1)
    values, vectors = np.linalg.eigh(s - resolution * np.outer(w, w) / w.sum())
    found = ag.by_modularity(spread(graph, x, True), x.shape[1], 4, resolution, 0)
    np.testing.assert_allclose(found.values, values[::-1][:4], rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * vectors[:, ::-1][:, :4], axis=0)), 1, rtol=1e-6)


def test_rows_of_one_degree_with_and_without_negative_entries() -> None:
    for low, was_lifted in ((0.0, False), (-1.0, True)):
        _, x = given(3, low=low)
        x[4] = 0
        f, lifted = ag.one_degree(x)
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
        cosine = unit @ unit.T
        some = np.linalg.norm(x, axis=1) > 0
        likeness = (np.outer(some, some) + cosine) / 2 if was_lifted else cosine
        degree = np.where(some, likeness.sum(1), 1.0)
        assert lifted == was_lifted
        np.testing.assert_allclose(f @ f.T, likeness / np.sqrt(np.outer(degree, degree)), atol=1e-12)
        assert not f[4].any()


def test_tf_idf_is_that_of_scikit_learn() -> None:
    x = np.random.default_rng(0).poisson(0.5, (20, 9)).astype(np.float64)
    x[:, 3] = 0
    np.testing.assert_allclose(
        ag.tf_idf(x), TfidfTransformer(norm=None).fit_transform(x).toarray(), atol=1e-12
    )


def test_rounding_finds_the_best_partition_of_few_rows() -> None:
    rng = np.random.default_rng(5)
    centres = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    of = np.repeat(np.arange(3), 3)
    rows = centres[of] + 0.1 * rng.standard_normal((9, 3))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = ag.rounded(rows, 10, 0)

    def objective(cluster: np.ndarray) -> float:
        sums = [unit[cluster == k].sum(0) for k in range(3)]
        return sum(float(s @ s) / max(1, int((cluster == k).sum())) for k, s in enumerate(sums)) / 9

    best = max(objective(np.array(c)) for c in itertools.product(range(3), repeat=9))
    assert found.objective == pytest.approx(best, abs=1e-12)
    np.testing.assert_array_equal(found.cluster, of)
    assert found.agreeing >= 1


def test_the_choice_of_a_form_follows_the_rule() -> None:
    n, m, hops, tau, k = 3000, 10_000, 10, 7, 6
    for d in (100, 255, 256, 4000):
        whole = m * d * hops + 2 * (tau + 1) * n * d * (k + 10) + 3 * n * (k + 10) ** 2
        steps = 2 * (tau + 1) * (n * d + m * hops) * (k + 10) + 3 * n * (k + 10) ** 2
        assert ag.explicit_is_cheaper(d, k) == (whole < steps)


def test_conductance_is_the_share_that_leaves() -> None:
    a = np.zeros((5, 5))
    for i, j, w in ((0, 1, 2.0), (1, 2, 1.0), (2, 3, 4.0)):
        a[i, j] = a[j, i] = w
    found = conductance(Matrix(a), np.array([0, 0, 1, 1, 2]), 3)
    np.testing.assert_allclose(found, [1 / 5, 1 / 5, np.nan])

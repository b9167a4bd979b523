"""The doubly stochastic projection, against a dense maximisation and its conditions of optimality."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tasks.numerics.doubly_stochastic import doubly_stochastic, unproven
from tasks.numerics.graphs import Matrix, symmetric


def sizes(seed: int, n: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    upper = np.triu(np.abs(rng.standard_normal((n, n))) * (rng.random((n, n)) < density), 1)
    return upper + upper.T


def maximised(size: np.ndarray, eta: float) -> np.ndarray:
    off = 1 - np.eye(len(size))

    def cost(a: np.ndarray) -> tuple[float, np.ndarray]:
        slack = np.maximum(size + a[:, None] + a, 0) * off
        return (slack**2).sum() / (2 * eta) - 2 * a.sum(), 2 * slack.sum(1) / eta - 2

    options = {"maxiter": 50_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-11}
    a = minimize(cost, np.zeros(len(size)), jac=True, method="L-BFGS-B", options=options).x
    return np.maximum(size + a[:, None] + a, 0) * off / eta


@pytest.mark.parametrize(
    ("n", "density", "eta"), [(30, 0.3, 0.1), (30, 0.05, 0.5), (80, 0.1, 0.05), (6, 0.0, 0.1)]
)
def test_that_of_a_dense_maximisation(n: int, density: float, eta: float) -> None:
    """Also where rows have few or no partners, so that pairs come in that were not there."""
    size = sizes(0, n, density)
    found = doubly_stochastic(Matrix(size), eta)
    assert found.error < 1e-6
    np.testing.assert_allclose(found.graph.toarray(), maximised(size, eta), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(3, 25),
    density=st.floats(0, 1),
    eta=st.sampled_from([1e-3, 0.01, 0.1, 1.0]),
)
def test_it_is_the_optimum(seed: int, n: int, density: float, eta: float) -> None:
    """Rows sum to 1, and every pair, also one that is not kept, has the slack that its weight says."""
    size = sizes(seed, n, density)
    found = doubly_stochastic(Matrix(size), eta)
    graph, a = found.graph.toarray(), found.potential
    np.testing.assert_array_equal(graph, graph.T)
    np.testing.assert_allclose(graph.sum(1), 1, atol=1e-6)
    slack = np.maximum(size + a[:, None] + a, 0) * (1 - np.eye(n)) / eta
    np.testing.assert_allclose(graph, slack, atol=1e-6 / eta)


def largest_of_rows(size: np.ndarray, entries: int) -> Matrix:
    kept = np.zeros_like(size)
    for row, columns in enumerate(np.argsort(-size, axis=1, kind="stable")[:, :entries]):
        kept[row, columns] = size[row, columns]
    return Matrix(kept)


def steep(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 16))
    scale = np.exp(rng.standard_normal(n) * rng.uniform(0, 2))
    noise = np.exp(rng.standard_normal((n, n)) * rng.uniform(0.5, 2))
    size = (noise + noise.T) * np.outer(scale, scale) * (1 - np.eye(n))
    return size / size.max()


def test_what_is_proven_is_the_projection_of_all() -> None:
    """Also where one of two rows alone keeps a pair, whose weight is then half of what it would be."""
    proven = 0
    for seed in range(40):
        size = steep(seed)
        for entries in range(2, len(size) - 1, 3):
            kept = largest_of_rows(size, entries)
            found = doubly_stochastic(symmetric(kept), 0.005)
            if found.error < 1e-7 and not unproven(kept, np.ones(len(size), dtype=bool), found.potential):
                proven += 1
                whole = doubly_stochastic(Matrix(size), 0.005)
                np.testing.assert_allclose(found.graph.toarray(), whole.graph.toarray(), atol=1e-6)
    assert proven >= 3


def test_a_pair_that_one_row_alone_keeps_is_not_proven() -> None:
    """Rows 0 and 1 have 1 and 0.9 with others; row 2 keeps 0.8 with row 0, which has no room for it."""
    size = np.zeros((6, 6))
    for a, b, value in (
        (0, 1, 1.0),
        (0, 3, 0.9),
        (1, 3, 0.9),
        (2, 0, 0.8),
        (2, 4, 0.1),
        (4, 5, 1.0),
        (3, 5, 0.9),
    ):
        size[a, b] = size[b, a] = value
    kept = largest_of_rows(size, 2)
    found = doubly_stochastic(symmetric(kept), 0.3)
    cut = np.array([True, False, False, True, False, False])
    assert unproven(kept, cut, found.potential) > 0
    assert np.abs(doubly_stochastic(Matrix(size), 0.3).graph.toarray() - found.graph.toarray()).max() > 0.01


def test_nothing_is_unproven_where_nothing_is_left_out() -> None:
    """Though potentials of some rows add up to more than 0."""
    size = sizes(0, 30, 0.05)
    found = doubly_stochastic(Matrix(size), 0.5)
    assert (found.graph.toarray()[size == 0] > 0).any()
    assert unproven(Matrix(size), np.zeros(30, dtype=bool), found.potential) == 0

"""The doubly stochastic projection, against a dense maximisation and its conditions of optimality."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tasks.numerics.doubly_stochastic import doubly_stochastic
from tasks.numerics.graphs import Matrix


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

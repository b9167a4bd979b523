"""spectrum.sparse_stream against LAPACK and SciPy's sparse solver on all rows, and bounds that hold."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import sparse_stream
from tests.methods import cases
from tests.methods.cases import Answer, Case


def solved(x: Tensor, **options: Any) -> Answer:
    config = sparse_stream.Config.model_validate(options)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    sparse_stream.check(inputs, config)
    block = cases._block({"x": x}, len(x), False)
    edges = list(range(config.batch, len(x), config.batch))
    return cases.run(Case(sparse_stream, config, inputs, block), cases.cut(block, edges))


def codes(n: int, d: int, topics: int, seed: int = 0, density: float = 0.2) -> Tensor:
    """Rows of few features each, which come in groups."""
    rng = np.random.default_rng(seed)
    groups = (rng.random((topics, d)) < density) * rng.random((topics, d)) * 5
    weights = (rng.random((n, topics)) < 0.2) * rng.exponential(1, (n, topics)) * 0.8 ** np.arange(topics)
    noise = (rng.random((n, d)) < 0.02) * rng.standard_normal((n, d)) * 0.05
    return torch.from_numpy(weights @ groups + noise)


def sine(basis: Tensor, vectors: Tensor) -> float:
    return float(torch.linalg.matrix_norm(basis - (basis @ vectors.T) @ vectors, 2))


def test_it_agrees_with_a_sparse_solver() -> None:
    x = codes(600, 200, 6)
    answer = solved(x, components=4, rank=24)
    _, expected, vectors = svds(csr_matrix(x.numpy()), k=4, random_state=0)
    np.testing.assert_allclose(answer.arrays["singular"], expected[::-1], rtol=1e-6)
    assert sine(answer.arrays["components"], torch.from_numpy(vectors.copy())) < 1e-3
    assert answer.result.orthogonality < 1e-9
    assert answer.result.energy == pytest.approx(float(x.square().sum()), rel=1e-12)
    assert answer.result.density == pytest.approx(float((x != 0).double().mean()))


def test_low_rank_is_exact() -> None:
    x = codes(300, 80, 5)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    x = (u[:, :5] * s[:5]) @ v[:5]
    answer = solved(x, components=5, rank=8, batch=16)
    np.testing.assert_allclose(answer.arrays["singular"], s[:5], rtol=1e-9)
    assert sine(answer.arrays["components"], v[:5]) < 1e-8
    assert answer.result.explained == pytest.approx(1)
    assert answer.result.missed < 1e-9 * float(s[0] ** 2)


@settings(max_examples=40, deadline=None)
@example(seed=517, rank=3, batch=3, k=1)  # what is kept vanishes
@given(seed=st.integers(0, 999), rank=st.integers(3, 20), batch=st.integers(1, 40), k=st.integers(1, 3))
def test_bounds_hold(seed: int, rank: int, batch: int, k: int) -> None:
    x = codes(120, 30, 8, seed)
    answer = solved(x, components=k, rank=rank, batch=batch)
    _, singular, vectors = torch.linalg.svd(x, full_matrices=False)
    found, rounding = answer.arrays["singular"].square(), 1e-9 * float(singular[0] ** 2)
    true = singular[:k].square()
    assert bool((found <= true + rounding).all())
    assert bool((true <= found + answer.result.missed + rounding).all())
    assert answer.result.orthogonality < 1e-7
    if answer.result.angle_bound is not None:
        assert sine(answer.arrays["components"], vectors[:k]) <= answer.result.angle_bound + 1e-6


def test_the_basis_stays_orthonormal_over_many_turns() -> None:
    """Directions that take turns make the small factor ill-conditioned: it is multiplied out, and nothing is lost."""
    x = torch.cat([codes(200, 60, 3, seed) * 3.0**seed for seed in range(8)])
    answer = solved(x, components=4, rank=6, batch=8)
    assert answer.result.rebuilt > 0
    assert answer.result.orthogonality < 1e-9


def test_features_that_no_row_holds_and_rows_of_zeros() -> None:
    x = codes(90, 40, 4)
    x[:, 10:20] = 0
    x[30:60] = 0
    answer = solved(x, components=3, batch=30)
    assert not answer.arrays["components"][:, 10:20].abs().gt(1e-12).any()
    empty = solved(torch.zeros(20, 6, dtype=torch.float64), components=2)
    assert empty.result.explained is None
    assert empty.result.angle_bound is None


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(MethodError, match="asked for 9 components, the site has 4"):
        solved(torch.ones(10, 4), components=9)
    with pytest.raises(MethodError, match="asked for 3 components of rank 2"):
        solved(torch.ones(10, 4), components=3, rank=2)


@pytest.mark.parametrize(("apart", "k"), [(1e-8, 1), (1e-13, 1), (0.5, 4)])
def test_rounding_is_part_of_the_bounds(apart: float, k: int) -> None:
    """Eigenvalues that nearly coincide; and, of rank three, a fourth direction that is rounding alone."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (300, 40))
    s = np.array([100, 100 * (1 - apart), 30])
    x = torch.from_numpy((left * s) @ right.T)
    answer = solved(x, components=k, rank=8, batch=16)
    vectors = torch.linalg.svd(x, full_matrices=False).Vh[:k]
    off = np.abs(answer.arrays["singular"][:3].numpy() ** 2 - s[:k] ** 2).max() if k < 3 else 0.0
    assert off <= answer.result.missed < 1e-9 * s[0] ** 2
    if answer.result.angle_bound is not None:
        assert sine(answer.arrays["components"], vectors) <= answer.result.angle_bound
    if apart == 1e-8 and k == 1:
        assert sine(answer.arrays["components"], torch.from_numpy(right[:, :1].T)) < 1e-6

"""Thresholded subspace clustering: against a dense loop, recovery and its failure, and rows that are equal or zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tests.methods.expressed import dense, expressed, parted
from tests.methods.test_k_subspaces import union


def by_hand(x: np.ndarray, q: int) -> np.ndarray:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    cosine = np.abs(unit @ unit.T)
    c = np.zeros_like(cosine)
    for i, row in enumerate(cosine):
        row[i] = 0
        for j in np.argsort(-row, kind="stable")[:q]:
            c[i, j] = np.exp(-2 * np.arccos(min(1.0, row[j]))) if row[j] > 0 else 0
    return c


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(3, 90), q=st.integers(1, 8), pieces=st.integers(1, 5))
def test_the_weights_of_a_dense_loop(seed: int, n: int, q: int, pieces: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, 6)) * 3
    q = min(q, n - 1)
    np.testing.assert_allclose(
        dense(expressed("tsc", x, pieces, entries=q)), by_hand(x, q), rtol=1e-12, atol=1e-13
    )


def test_subspaces_that_nearly_fill_the_features_need_many_rows() -> None:
    """Five of 25 dimensions in 50: half right with 50 rows each, nearly all with 200 (targets 52 and 99 of 100)."""
    found = []
    for each in (50, 200):
        shares = []
        for seed in range(3):
            x, of = union(seed, 5, 25, 50, each)
            graph = expressed("tsc", x, entries=max(3, each // 20))
            shares.append(parted(graph, of, clusters=5, starts=20).result.accuracy)
        found.append(float(np.mean(shares)))
    assert found[0] == pytest.approx(0.52, abs=0.1)
    assert found[1] >= 0.97


def test_equal_rows_opposite_ones_and_zeros() -> None:
    x = np.zeros((6, 3))
    x[0, 0] = x[1, 0] = 2.0
    x[2, 0] = -1.0
    x[3, 1] = 1.0
    found = dense(expressed("tsc", x, entries=2))
    np.testing.assert_array_equal(found[:3, :3], 1 - np.eye(3))
    assert not found[3:].any()
    assert expressed("tsc", x, entries=2).result.isolated == 3


def test_refusals() -> None:
    with pytest.raises(MethodError, match="found 5 rows, expressing each by up to 5 others needs at least 6"):
        expressed("tsc", np.eye(5), entries=5)

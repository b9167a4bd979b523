"""Low-rank representation: against singular vectors of the rows, and a numerical minimum."""

import numpy as np
import pytest

from schemas.errors import MethodError
from tests.methods.expressed import dense, expressed, parted
from tests.methods.test_k_subspaces import union


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def graph_of(c: np.ndarray, power: float) -> np.ndarray:
    scale = np.sqrt(c.diagonal())
    graph = np.abs(c / scale[:, None] / scale) ** power
    np.fill_diagonal(graph, 0)
    return graph


def test_the_shape_interaction_matrix() -> None:
    x, _ = union(0, 3, 4, 30, 20)
    u = np.linalg.svd(unit(x), full_matrices=False)[0][:, :12]
    answer = expressed("lrr", x, entries=59, noise=0.0, power=2.0)
    assert answer.result.rank == 12
    np.testing.assert_allclose(dense(answer), graph_of(u @ u.T, 2.0), atol=1e-10)


def test_noise_shrinks_directions_as_the_minimum_does() -> None:
    """min |C|_* + tau / 2 |Z - C Z|^2 over symmetric C: its optimality, checked on the matrix that the closed form gives."""
    x = unit(np.random.default_rng(0).standard_normal((25, 8)))
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    noise = 0.3
    tau = 1 / (noise * s[0] ** 2)
    gain = np.maximum(1 - 1 / (tau * s**2), 0)
    c = u * gain @ u.T
    used = gain > 0
    gradient = tau * (x - c @ x) @ x.T
    np.testing.assert_allclose(u[:, used].T @ gradient @ u[:, used], np.eye(used.sum()), atol=1e-9)
    assert np.linalg.norm(gradient - u[:, used] @ u[:, used].T, 2) <= 1 + 1e-9
    answer = expressed("lrr", x, entries=24, noise=noise, power=1.0)
    np.testing.assert_allclose(dense(answer), graph_of(c, 1.0), atol=1e-9)
    assert answer.result.rank == used.sum()


def test_independent_subspaces_are_blocks() -> None:
    x, of = union(2, 4, 5, 40, 30)
    answer = expressed("lrr", x, noise=0.0)
    result = parted(answer, of, clusters=4).result
    assert result.accuracy == 1
    assert result.wrong_share < 1e-12


def test_rows_at_right_angles_to_the_used_directions_have_no_entries() -> None:
    """What lies along these is rounding, which has no direction."""
    x, _ = union(0, 3, 2, 30, 20)
    lone = np.linalg.svd(x)[2][10:12]
    answer = expressed("lrr", np.vstack([x, lone, np.zeros(30)]), entries=5, noise=0.0, rank=3)
    assert answer.arrays["index"][-3:].tolist() == [[-1] * 5] * 3
    assert answer.result.isolated == 3
    assert bool((answer.arrays["index"][:-3, 0] >= 0).all())


def test_refusals() -> None:
    with pytest.raises(MethodError, match="span 12 directions, asked for 13"):
        expressed("lrr", union(0, 3, 4, 30, 20)[0], rank=13)
    with pytest.raises(MethodError, match="span 0 directions"):
        expressed("lrr", np.zeros((40, 3)))

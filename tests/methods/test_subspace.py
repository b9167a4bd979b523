"""Subspace iteration: against LAPACK, and certificates that must hold."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import subspace
from tests.methods import cases
from tests.methods.cases import Case


def solved(x: np.ndarray, edges: list[int] | None = None, **options: Any) -> cases.Answer:
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=len(x), n_samples=len(x))
    config = subspace.Config(**options)
    subspace.check(inputs, config)
    block = cases._block({"x": torch.from_numpy(x)}, len(x), False)
    return cases.run(Case(subspace, config, inputs, block), cases.cut(block, edges or []))


def by_lapack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(np.cov(x.astype(np.float64), rowvar=False))
    return values[::-1], vectors[:, ::-1]


def rows_of(seed: int, n: int, width: int, decay: float, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    return (rng.standard_normal((n, width)) * decay ** np.arange(width)) @ turn + offset


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_it_equals_lapack(offset: float) -> None:
    x = rows_of(0, 800, 60, 0.8, offset)
    answer = solved(x, [100, 400], components=5, oversample=8, tolerance=1e-12, max_rounds=40)
    values, vectors = by_lapack(x)
    assert answer.result.converged
    np.testing.assert_allclose(answer.arrays["eigenvalue"], values[:5], rtol=1e-9)
    angles = subspace_angles(answer.arrays["components"].numpy().T, vectors[:, :5])
    assert np.sin(angles).max() < 1e-9
    np.testing.assert_allclose(answer.arrays["mean"], x.mean(0), rtol=1e-12, atol=1e-12)
    assert answer.result.trace == pytest.approx(values.sum(), rel=1e-9)
    turned = answer.arrays["components"] @ answer.arrays["components"].T
    torch.testing.assert_close(turned, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rounds=st.integers(2, 6),
    decay=st.floats(0.3, 0.97),
    k=st.integers(1, 6),
    oversample=st.integers(0, 6),
)
def test_certificates_hold(seed: int, rounds: int, decay: float, k: int, oversample: int) -> None:
    x = rows_of(seed, 120, 20, decay, 5.0)
    answer = solved(x, components=k, oversample=oversample, max_rounds=rounds, tolerance=1e-15, seed=seed)
    values, vectors = by_lapack(x)
    found, rounding = answer.arrays["eigenvalue"].numpy(), 1e-12 * values[0]
    assert (found <= values[:k] + rounding).all()
    assert (values[:k] - found <= answer.result.outside + rounding).all()
    assert values[k] <= answer.result.outside + rounding
    nearest = np.abs(found[:, None] - values[None]).min(1)
    assert (nearest <= answer.arrays["residual"].numpy() + rounding).all()
    if answer.result.angle_bound is not None:
        sine = np.sin(subspace_angles(answer.arrays["components"].numpy().T, vectors[:, :k])).max()
        assert sine <= answer.result.angle_bound + 1e-7


def test_the_bound_is_not_vacuous() -> None:
    x = rows_of(0, 300, 30, 0.4)
    answer = solved(x, components=3, oversample=5, max_rounds=3, tolerance=1e-15)
    sine = np.sin(subspace_angles(answer.arrays["components"].numpy().T, by_lapack(x)[1][:, :3])).max()
    assert answer.result.angle_bound is not None
    assert answer.result.angle_estimate is not None
    assert sine <= answer.result.angle_bound < 100 * max(sine, 1e-12)
    assert answer.result.angle_estimate <= answer.result.angle_bound


def test_rounds_end_when_it_is_done_or_must_be() -> None:
    x = rows_of(0, 300, 40, 0.5)
    quick = solved(x, components=2, oversample=10)
    assert quick.result.converged
    assert quick.result.rounds < 8
    slow = solved(rows_of(0, 300, 40, 0.995), components=4, oversample=0, max_rounds=3)
    assert not slow.result.converged
    assert slow.result.rounds == 3


def test_planted_directions_are_found() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((500, 3)))[0]
    x = (rng.standard_normal((400, 3)) * (30, 20, 10)) @ basis.T + 0.1 * rng.standard_normal((400, 500))
    answer = solved(x.astype(np.float32), components=3)
    assert np.sin(subspace_angles(answer.arrays["components"].numpy().T, basis)).max() < 0.03
    assert answer.result.explained > 0.98


def test_rows_of_low_rank_and_no_variance_are_taken() -> None:
    x = np.outer(np.arange(20.0), np.ones(6))
    answer = solved(x, components=3, oversample=2)
    assert answer.result.explained == pytest.approx(1)
    flat = solved(np.ones((10, 4)), components=2)
    assert flat.result.explained is None
    assert flat.result.residual is None


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(MethodError, match="asked for 9 components, the site has 4"):
        solved(np.ones((10, 4)), components=9)
    with pytest.raises(MethodError, match="found 1 rows, expected at least 2"):
        solved(np.ones((1, 4)), components=2)

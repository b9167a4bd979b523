"""Projection on a basis: against NumPy, and against rows that lie in the basis."""

import numpy as np
import pytest
import torch

from schemas.errors import MethodError
from tasks.methods.contract import Inputs
from tasks.methods.spectrum import project
from tests.methods import cases
from tests.methods.cases import Case


def projected(
    x: np.ndarray, basis: np.ndarray, mean: np.ndarray, components: int | None = None
) -> cases.Answer:
    arrays = {"components": torch.from_numpy(basis), "mean": torch.from_numpy(mean)}
    n = len(x)
    inputs = Inputs(widths={"x": x.shape[1]}, n_rows=n, n_samples=n, artifacts={"basis": arrays})
    block = cases._block({"x": torch.from_numpy(x)}, n, False)
    here = Case(project, project.Config(components=components), inputs, block)
    project.check(inputs, here.config)
    return cases.run(here)


def basis_of(width: int, k: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, k)))[0].T.copy()


def test_it_equals_numpy() -> None:
    rng = np.random.default_rng(1)
    x, basis, mean = rng.standard_normal((700, 9)).astype(np.float32), basis_of(9, 4), rng.standard_normal(9)
    answer = projected(x, basis, mean)
    centred = x.astype(np.float64) - mean
    inside = centred @ basis.T
    outside = np.linalg.norm(centred - inside @ basis, axis=1)
    np.testing.assert_allclose(answer.arrays["coordinates"], inside, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(answer.arrays["residual"], outside, rtol=1e-6)
    assert answer.result.explained == pytest.approx((inside**2).sum() / (centred**2).sum(), rel=1e-6)
    assert answer.result.residual_max == pytest.approx(outside.max(), rel=1e-6)
    assert answer.result.residual_rms == pytest.approx(np.sqrt((outside**2).mean()), rel=1e-6)


def test_a_small_residual_beside_a_large_row_is_not_lost() -> None:
    basis, mean = basis_of(6, 5), np.zeros(6)
    normal = np.linalg.svd(basis)[2][5]
    x = 1e6 * basis[:1] + 1e-4 * normal
    answer = projected(x, basis, mean)
    assert float(answer.arrays["residual"][0]) == pytest.approx(1e-4, rel=1e-5)


def test_rows_in_the_basis_are_explained() -> None:
    basis, mean = basis_of(8, 3), np.full(8, 5.0)
    x = np.random.default_rng(0).standard_normal((50, 3)) @ basis + mean
    assert projected(x, basis, mean).result.explained == pytest.approx(1, abs=1e-12)
    assert projected(x, basis, mean, components=1).arrays["coordinates"].shape == (50, 1)


def test_a_wrong_basis_is_refused() -> None:
    x = np.zeros((4, 5), dtype=np.float32)
    with pytest.raises(MethodError, match="8 features, the site has 5"):
        projected(x, basis_of(8, 3), np.zeros(8))
    with pytest.raises(MethodError, match="has no components: the rows of the pca stage are all equal"):
        projected(np.ones((4, 5)), np.zeros((0, 5)), np.ones(5))
    with pytest.raises(MethodError, match="has 3 components, asked for 4"):
        projected(x, basis_of(5, 3), np.zeros(5), components=4)

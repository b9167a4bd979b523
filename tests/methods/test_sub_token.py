"""Numbers of sub-tokens against plain NumPy, planted directions, and what principal components and KLT lose."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from schemas.errors import MethodError
from tasks.compressed.sub_token import SubTokenLinear
from tasks.methods.compression import sub_token
from tests.methods import cases
from tests.methods.cases import Answer
from tests.methods.test_klt import case_of, coded, gaussian


def told(x: np.ndarray, **options: Any) -> Answer:
    here = case_of(sub_token, x, sub_token.Config(**options))
    sub_token.check(here.inputs, here.config)
    return cases.run(here)


@pytest.mark.parametrize("direction", ["principal", "mean"])
@pytest.mark.parametrize("shared", [False, True])
def test_errors_are_those_of_numpy(direction: str, shared: bool) -> None:
    x = gaussian(900, 12, power=0.3, mean=0.5)
    answer = told(x, place=4, direction=direction, shared=shared)
    runs, v = x.astype(np.float64).reshape(-1, 3, 4), answer.arrays["direction"].numpy()
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-12)
    off = ((runs - (runs * v).sum(2, keepdims=True) * v) ** 2).sum((0, 2))
    assert answer.result.nmse == pytest.approx(off.sum() / (runs**2).sum(), rel=1e-9)
    np.testing.assert_allclose(answer.arrays["group_nmse"], off / (runs**2).sum((0, 2)), rtol=1e-9)
    if direction == "principal":
        rows = runs.reshape(1, -1, 4) if shared else runs.transpose(1, 0, 2)
        best = [np.linalg.svd(run, full_matrices=False)[2][0] for run in rows]
        np.testing.assert_allclose(np.abs((v * best).sum(1)), 1, rtol=1e-9)
    else:
        mean = runs.mean((0, 1))[None] if shared else runs.mean(0)
        np.testing.assert_allclose(v * np.linalg.norm(mean, axis=1)[:, None], mean + 0 * v, rtol=1e-6)


def test_rows_along_planted_directions_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    v = rng.standard_normal((4, 3))
    x = (rng.standard_normal((500, 4, 1)) * v).reshape(500, 12).astype(np.float32)
    result = told(x, place=3).result
    assert result.nmse < 1e-12
    assert told(x, place=3, shared=True).result.nmse > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_principal_components_of_as_many_numbers_never_err_more(seed: int) -> None:
    x = gaussian(600, 24, seed, mean=1)
    for place in (1, 2, 4, 8):
        result = told(x, place=place).result
        assert result.pca_nmse <= result.nmse + 1e-12
        values = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
        assert result.pca_nmse == pytest.approx(values[result.groups :].sum() / values.sum(), abs=1e-9)
        assert result.nmse <= told(x, place=place, direction="mean").result.nmse


def test_klt_is_what_its_own_codes_lose() -> None:
    """The formula against coded Gaussian rows at the same bits."""
    x = gaussian(20_000, 16, mean=0, power=0.5)
    result = told(x, place=4).result
    codes = coded(x, nmse=result.klt_nmse).result
    assert codes.bits_per_dimension == pytest.approx(result.bits_per_dimension, abs=0.05)
    assert result.klt_nmse < 0.1 * result.nmse


def test_the_layer_loses_what_is_told() -> None:
    """The weights' gradient of the module is that of rows with this error."""
    x, layer = gaussian(400, 12), nn.Linear(12, 3)
    answer = told(x, place=4)
    coarse = SubTokenLinear(layer, answer.arrays["direction"])
    coarse(torch.from_numpy(x)).sum().backward()
    runs, v = x.astype(np.float64).reshape(-1, 3, 4), answer.arrays["direction"].numpy()
    rows = ((runs * v).sum(2, keepdims=True) * v).reshape(-1, 12)
    np.testing.assert_allclose(layer.weight.grad[0], rows.sum(0), rtol=1e-4)


def test_refusals_and_dead_runs() -> None:
    x = gaussian(200, 12, mean=0)
    with pytest.raises(
        MethodError, match=r"runs of 5 features do not fill rows of 12; set `place` to one of 3, 4, 6"
    ):
        told(x, place=5)
    with pytest.raises(MethodError, match="all rows are zeros"):
        told(np.zeros((20, 8), np.float32))
    both = np.concatenate([x, -x])
    with pytest.raises(MethodError, match="direction: principal"):
        told(both, place=4, direction="mean")
    x[:, :4] = 0
    answer = told(x, place=4)
    assert answer.arrays["group_nmse"].isnan().tolist() == [True, False, False]
    assert 0 < answer.result.nmse < 1
    assert told(x[:1], place=4).result.nmse < 1e-12

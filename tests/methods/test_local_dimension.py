"""geometry.local_dimension: formulas row by row, surfaces of different dimension in one site, and rows that have none."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Block, Inputs
from tasks.methods.geometry import local_dimension
from tests.methods.cases import Answer, Case, cut, run_rowwise
from tests.methods.test_dimension import distances, drawn


def run(distance: Tensor, edges: tuple[int, ...] = (), **options: Any) -> Answer:
    n, k = distance.shape
    index = torch.arange(n)
    block = Block(
        {"x": torch.empty(n, 0)}, index, index, index, aligned={"neighbours": {"distance": distance}}
    )
    inputs = Inputs(widths={"x": 9}, n_rows=n, n_samples=n, results={"neighbours": {"k": k}})
    config = local_dimension.Config.model_validate(options)
    local_dimension.check(inputs, config)
    here = Case(local_dimension, config, inputs, block)
    return run_rowwise(here, cut(block, edges))


def test_estimates_are_those_of_their_formulas() -> None:
    distance = distances(drawn(120, 5, 2), 9)
    r, k = distance.numpy(), 9
    expected = {
        "mle": [1 / np.mean(np.log(row[-1] / row[:-1])) for row in r],
        "unbiased": [(k - 2) / np.sum(np.log(row[-1] / row[:-1])) for row in r],
        "moments": [np.mean(row[:-1]) / (row[-1] - np.mean(row[:-1])) for row in r],
        "ldreg": [-k / np.sum(np.log(row[:-1] / row[-1] + 1e-4)) for row in r],
    }
    for name, wanted in expected.items():
        found = run(distance, (17, 80), estimator=name)
        np.testing.assert_allclose(found.arrays["dimension"], wanted, rtol=1e-12, err_msg=name)
        assert found.result.geometric_mean == pytest.approx(np.exp(np.mean(np.log(wanted))), rel=1e-12)
        assert found.result.harmonic_mean == pytest.approx(1 / np.mean(1 / np.array(wanted)), rel=1e-12)
        assert found.result.median == pytest.approx(np.median(wanted), rel=1e-12)
        np.testing.assert_allclose(
            found.arrays["quantile"], np.quantile(wanted, local_dimension.SHARES), rtol=1e-12
        )
        assert found.result.relative_spread == pytest.approx(np.std(wanted) / np.mean(wanted), rel=1e-9)


def test_a_line_and_a_space_in_one_site() -> None:
    line = torch.zeros(1000, 6, dtype=torch.float64)
    line[:, 0] = 100 + torch.rand(1000, generator=torch.Generator().manual_seed(0)).double()
    found = run(distances(torch.cat([line, drawn(1000, 6)]), 20))
    d = found.arrays["dimension"]
    assert float(d[:1000].mean()) == pytest.approx(1, abs=0.05)
    assert 4.5 < float(d[1000:].mean()) < 6
    assert found.result.relative_spread > 2 * found.result.spread_of_noise


def test_the_noise_of_uniform_rows_is_as_said() -> None:
    """Under the exact law of distances, the unbiased estimate has mean d and this spread."""
    steps = torch.empty(20_000, 20, dtype=torch.float64).exponential_(
        generator=torch.Generator().manual_seed(0)
    )
    found = run(torch.cumsum(steps, 1) ** (1 / 5))
    assert float(found.arrays["dimension"].mean()) == pytest.approx(5, rel=0.01)
    assert found.result.relative_spread == pytest.approx(found.result.spread_of_noise, rel=0.05)


def test_the_published_variant_is_too_high() -> None:
    """k over k - 1 terms: 20/19 of the maximum likelihood, and more for rows whose neighbours are much nearer than the last."""
    steps = torch.empty(5000, 20, dtype=torch.float64).exponential_(
        generator=torch.Generator().manual_seed(0)
    )
    distance = torch.cumsum(steps, 1) ** (1 / 2)
    mle, ldreg = (run(distance, estimator=name).result.geometric_mean for name in ("mle", "ldreg"))
    assert 20 / 19 < ldreg / mle < 1.01 * 20 / 19
    distance[:, :10] *= 1e-6
    mle, ldreg = (run(distance, estimator=name).result.geometric_mean for name in ("mle", "ldreg"))
    assert ldreg / mle > 1.4 * 20 / 19


def test_rows_without_a_dimension_are_counted() -> None:
    x = drawn(100, 3)
    x[10:14] = x[0:4]
    distance = distances(x, 5)
    distance[20, 3:] = torch.inf
    distance[21] = 1.0
    found = run(distance)
    assert (found.result.n_duplicate, found.result.n_few, found.result.n_tied) == (8, 1, 1)
    lost = torch.isnan(found.arrays["dimension"])
    assert torch.nonzero(lost).flatten().tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]
    nothing = run(torch.ones(30, 5, dtype=torch.float64))
    assert (nothing.result.n_tied, nothing.result.median, nothing.result.geometric_mean) == (30, None, None)


def test_nearly_equal_distances_have_no_published_estimate() -> None:
    """There the shift exceeds the ratio: the formula is negative."""
    distance = 1 + torch.arange(5, dtype=torch.float64).expand(20, 5) * 1e-6
    assert run(distance, estimator="ldreg").result.n_tied == 20
    assert run(distance, estimator="mle").result.n_tied == 0


def test_quantiles_of_a_draw() -> None:
    distance = distances(drawn(3000, 3), 10)
    whole, some = run(distance).result, run(distance, (500, 2000), quantile_rows=800).result
    assert (whole.n_quantile, some.n_quantile) == (3000, 800)
    assert some.median == pytest.approx(whole.median, rel=3 * 0.45 / math.sqrt(800))


def test_too_few_neighbours_are_refused() -> None:
    with pytest.raises(MethodError, match=r"3 neighbours per row, .* at least 4"):
        run(distances(drawn(30, 3), 3))

"""geometry.dimension: known dimensions, loops over rows, intervals that cover, and rows without ratios."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import Array, Block, Inputs
from tasks.methods.geometry import dimension
from tasks.methods.grouped_moments import Interval
from tasks.numerics import neighbours as search


def distances(x: Tensor, k: int) -> Tensor:
    index = torch.arange(len(x))
    return search.nearest(search.none_yet(len(x), k), x, index, x, index).distance


def run(
    distance: Tensor, sample: Tensor | None = None, pieces: int = 3, **options: Any
) -> tuple[dimension.Result, dict[str, Array]]:
    """The method as the engine calls it."""
    n, k = distance.shape
    sample = torch.arange(n) if sample is None else sample
    config = dimension.Config.model_validate(options)
    inputs = Inputs(
        widths={"x": 99},
        n_rows=n,
        n_samples=len(torch.unique(sample)),
        results={"neighbours": {"k": k}},
    )
    dimension.check(inputs, config)
    state = None
    for part in torch.arange(n).tensor_split(pieces):
        aligned = {"neighbours": {"distance": distance[part]}}
        block = Block({"x": torch.empty(len(part), 0)}, sample[part], part, part, aligned=aligned)
        other = dimension.partial(block, {}, config)
        state = other if state is None else dimension.merge(state, other)
    assert state is not None
    return dimension.finish(state, {}, inputs, config)


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(found: Interval | None) -> float:
    assert found is not None
    return found.value


@pytest.mark.parametrize(
    ("d", "mle", "twonn"), [(2, 2.02, 1.94), (5, 5.04, 4.86), (10, 9.20, 9.3), (20, 15.63, 17.5)]
)
def test_known_values_of_gaussians(d: int, mle: float, twonn: float) -> None:
    """As scikit-dimension gives them for other draws of 3000 rows in d dimensions (of 30, turned): three standard errors are 8 % for
    TwoNN and a third of it for 20 neighbours."""
    turn = torch.linalg.qr(drawn(30, 30, 9)).Q[:d]
    result, _ = run(distances(drawn(3000, d, 1) @ turn, 20))
    assert value(result.dimension) == pytest.approx(mle, rel=0.025)
    assert value(result.twonn) == pytest.approx(twonn, rel=0.08)
    assert value(result.dimension_gaussian) == pytest.approx(d, rel=0.03)
    assert value(result.twonn_gaussian) == pytest.approx(d, rel=0.08)
    gaussian = result.dimension_gaussian
    assert gaussian is not None
    assert gaussian.low is not None
    assert gaussian.high is not None
    assert gaussian.low < gaussian.value < gaussian.high
    assert gaussian.low < d * 1.01
    assert gaussian.high > d * 0.99
    assert result.saturated is not None
    assert d < 10 or result.saturated < 0.99 * value(result.dimension)


def test_numbers_are_those_of_loops() -> None:
    """Each estimator's own formula, row by row, in NumPy."""
    k, n = 12, 400
    distance = distances(drawn(n, 6, 3) * torch.arange(1, 7), k)
    result, arrays = run(distance)
    r = distance.numpy()
    local = np.array([(k - 1) / np.log(row[-1] / row[:-1]).sum() for row in r])
    assert value(result.dimension) == pytest.approx(1 / np.mean(1 / local), rel=1e-12)
    assert value(result.levina_bickel) == pytest.approx(np.mean(local * (k - 2) / (k - 1)), rel=1e-12)
    assert value(result.geometric) == pytest.approx(np.exp(np.log(local).mean()), rel=1e-12)
    moments = np.array([row[:-1].mean() / (row[-1] - row[:-1].mean()) for row in r])
    assert value(result.moments) == pytest.approx(np.exp(np.log(moments).mean()), rel=1e-12)
    ldreg = np.array([-k / np.log(row[:-1] / row[-1] + 1e-4).sum() for row in r])
    assert value(result.ldreg) == pytest.approx(np.exp(np.log(ldreg).mean()), rel=1e-12)
    mu = np.sort(r[:, 1] / r[:, 0])
    assert value(result.twonn) == pytest.approx((n - 1) / np.log(mu).sum(), rel=1e-12)
    kept = int(n * 0.9)
    x, y = np.log(mu[:kept]), -np.log(1 - np.arange(1, kept + 1) / n)
    assert value(result.twonn_line) == pytest.approx(
        np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], rel=1e-10
    )
    assert value(result.twonn_censored) == pytest.approx(
        (kept - 1) / (x.sum() + (n - kept) * x[-1]), rel=1e-12
    )
    for place, order in enumerate(range(2, k + 1)):
        inverse = np.log(r[:, order - 1 : order] / r[:, : order - 1]).sum(1) / (order - 1)
        assert float(arrays["dimension"].values[place]) == pytest.approx(1 / inverse.mean(), rel=1e-12)
    assert arrays["doubling"].values.tolist() == [1, 2, 4]
    harmonic = [sum(1 / j for j in range(m, 2 * m)) for m in (1, 2, 4)]
    logs = [np.log(r[:, 2 * m - 1] / r[:, m - 1]).mean() for m in (1, 2, 4)]
    np.testing.assert_allclose(arrays["two_scale"].values, np.array(harmonic) / logs, rtol=1e-12)
    np.testing.assert_allclose(arrays["distance"].values, np.exp(np.log(r[:, 1:]).mean(0)), rtol=1e-12)


def test_ratios_of_an_exact_law_are_unbiased() -> None:
    """Distances whose d-th powers are sums of exponentials, as in endless uniform rows: every estimator but LDReg's gives d."""
    d, k, n = 7.0, 20, 20_000
    steps = torch.empty(n, k, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0))
    result, arrays = run(torch.cumsum(steps, 1) ** (1 / d))
    names = ("dimension", "levina_bickel", "twonn", "twonn_line", "twonn_censored")
    for name in names:
        assert value(getattr(result, name)) == pytest.approx(d, rel=0.03), name
    assert value(result.geometric) == pytest.approx(
        d * 19 / math.exp(torch.special.digamma(torch.tensor(19.0))), rel=0.01
    )
    assert value(result.ldreg) > value(result.geometric) * 20 / 19
    for name in ("dimension", "two_scale"):
        np.testing.assert_allclose(arrays[name].values, d, rtol=0.03)


def test_scales_tell_noise_from_a_surface() -> None:
    """A thin plane in ten dimensions: the noise is seen by near neighbours, the plane by far ones."""
    x = torch.cat([3 * drawn(2000, 2, 4), 0.02 * drawn(2000, 8, 5)], 1)
    profile = run(distances(x, 64))[1]["two_scale"].values.tolist()
    assert profile[0] > profile[-1] + 0.3
    assert profile[-1] == pytest.approx(2, abs=0.35)


def test_intervals_cover_dependent_rows() -> None:
    """Samples of eight rows near each other in a plane, with neighbours among 40 other samples: the truth is from many of them."""

    def made(samples: int, seed: int) -> tuple[Tensor, Tensor]:
        centres = drawn(samples, 5, seed)
        rows = centres.repeat_interleave(8, 0) + 0.3 * drawn(8 * samples, 5, 1000 + seed)
        return distances(rows, 8), torch.arange(samples).repeat_interleave(8)

    each = [run(*made(60, seed), groups=20)[0].dimension for seed in range(40)]
    truth = 1 / np.mean([1 / value(found) for found in each])
    hits = [found.low <= truth <= found.high for found in each if found and found.low and found.high]
    assert len(hits) == 40
    assert np.mean(hits) >= 0.85


def test_rows_without_ratios_are_counted() -> None:
    x = drawn(300, 4)
    x[50:60] = x[40:50]
    distance = distances(x, 6)
    distance[70:75, 4:] = torch.inf
    result, arrays = run(distance)
    assert (result.n_rows, result.n_used, result.n_duplicate, result.n_few) == (300, 275, 20, 5)
    assert any("25 of 300 rows" in note for note in result.caveats)
    plain = run(distance[(distance[:, 0] > 0) & distance[:, -1].isfinite()])[0]
    assert value(result.dimension) == pytest.approx(value(plain.dimension), rel=1e-12)
    assert all(torch.isfinite(array.values.double()).all() for array in arrays.values())


def test_rows_at_one_distance_have_no_dimension() -> None:
    """Orthogonal rows: every neighbour is as far. Sums of logarithms are zero, which is an endless dimension, not NaN."""
    result, arrays = run(distances(torch.eye(40, dtype=torch.float64), 5))
    assert result.n_tied == 40
    assert result.dimension is None
    assert result.twonn is None
    assert result.levina_bickel is None
    assert arrays["dimension"].values.isinf().all()


def test_no_usable_rows() -> None:
    result, _ = run(distances(torch.zeros(30, 3, dtype=torch.float64), 5))
    assert (result.n_used, result.n_duplicate, result.n_fitted) == (0, 30, 0)
    assert (result.dimension, result.twonn, result.twonn_line, result.dimension_gaussian) == (None,) * 4


def test_one_sample_has_no_interval() -> None:
    result, arrays = run(distances(drawn(60, 3), 5), torch.zeros(60, dtype=torch.int64))
    assert result.dimension is not None
    assert result.dimension.low is None
    assert arrays["low"].values.isnan().all()
    assert any("no intervals" in note for note in result.caveats)
    assert any("same sample" in note for note in result.caveats)


def test_the_line_of_a_draw() -> None:
    """With fewer places than rows: a draw without replacement that does not depend on blocks, near the line of all."""
    distance = distances(drawn(4000, 3), 3)
    whole = run(distance)[0]
    found = [run(distance, pieces=pieces, fit_rows=1000)[0] for pieces in (1, 7)]
    assert found[0].twonn_line == found[1].twonn_line
    assert found[0].n_fitted == 1000
    assert whole.n_fitted == 4000
    assert value(found[0].twonn_line) == pytest.approx(value(whole.twonn_line), rel=3 / math.sqrt(1000))
    assert value(found[0].twonn) == value(whole.twonn)
    assert any("1000 rows drawn from 4000" in note for note in found[0].caveats)


def test_features_and_targets_of_a_linear_map() -> None:
    """What a regression's features hold of its targets: features that are a map of three targets have their dimension."""
    y = drawn(1500, 3)
    features, targets = (run(distances(z, 10))[0].dimension for z in (y @ drawn(3, 30, 2), y))
    assert value(features) == pytest.approx(value(targets), rel=0.05)
    assert value(targets) == pytest.approx(3, rel=0.05)


def test_too_few_neighbours_are_refused() -> None:
    with pytest.raises(MethodError, match=r"2 neighbours per row, .* at least 3"):
        run(distances(drawn(30, 3), 2))

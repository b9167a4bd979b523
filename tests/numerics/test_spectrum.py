"""Ranks, dimensions and intervals against closed forms, NumPy, and the truth of planted spectra."""

import math

import numpy as np
import pytest
import torch
from scipy.special import entr

from schemas.errors import MethodError
from tasks.numerics import moments, spectrum

GEOMETRIC = 0.9 ** torch.arange(200, dtype=torch.float64)


def draws(seed: int, rows: int, spread: torch.Tensor, tails: str = "normal") -> torch.Tensor:
    """Independent rows with these standard deviations; t5 rows share one heavy-tailed scale per row."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, len(spread)))
    if tails == "t5":
        x *= np.sqrt(3 / rng.chisquare(5, (rows, 1)))
    return torch.from_numpy(x) * spread


def unbiased(x: torch.Tensor) -> float:
    state = moments.partial(x)
    square = float(moments.covariance(state).square().sum())
    return spectrum.participation_ratio_unbiased(moments.trace(state), square, moments.fourth(state), len(x))


def test_eigen_against_numpy() -> None:
    matrix = moments.covariance(moments.partial(draws(0, 300, torch.linspace(1, 3, 20, dtype=torch.float64))))
    found = spectrum.eigen(matrix)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix.numpy())[::-1], rtol=1e-13)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(20), atol=1e-13)
    assert found.residual < 1e-14


def test_signs_do_not_depend_on_the_solver() -> None:
    rows = torch.randn(7, 12, dtype=torch.float64)
    flips = torch.tensor([1.0, -1, 1, -1, -1, 1, 1], dtype=torch.float64)[:, None]
    assert torch.equal(spectrum.signed(rows), spectrum.signed(rows * flips))
    assert bool((spectrum.signed(rows).gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all())
    equal = torch.tensor([[-0.5, 0.5 + 1e-12, 0.5, -0.5]], dtype=torch.float64)
    assert float(spectrum.signed(equal)[0, 0]) > 0


def test_eigen_refuses_what_is_not_finite() -> None:
    with pytest.raises(MethodError, match="not finite"):
        spectrum.eigen(torch.full((2, 2), math.nan, dtype=torch.float64))


def test_a_failing_solver_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    good = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: (good(m)[0], good(m)[1].roll(1, 1)))
    with pytest.raises(MethodError, match="residual"):
        spectrum.eigen(torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)))


def test_products_hide_the_tail_and_the_floor_says_where() -> None:
    """Singular values from 1 to 1e-12: what products cannot hold is below the floor, the rest right."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 200)))[0] for n in (8000, 200))
    singular = np.logspace(0, -12, 200)
    x = torch.from_numpy(left * singular @ right.T)
    found = spectrum.resolve(moments.partial(x), center=False)
    sigma = (found.values * len(x)).clamp(min=0).sqrt().numpy()
    kept = found.rank
    assert 90 <= kept <= 115
    assert singular[kept] < 1e-6
    assert singular[kept - 1] > 1e-7
    np.testing.assert_allclose(sigma[:kept], singular[:kept], rtol=0.05)
    assert np.abs(sigma / singular - 1)[kept + 20 :].max() > 1


def test_float32_products_have_a_higher_floor() -> None:
    x = draws(0, 4000, torch.logspace(0, -6, 40, dtype=torch.float64))
    truth = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False) ** 2 / (len(x) - 1)
    found = spectrum.resolve(moments.partial(x, precision="float32"), "float32")
    assert 18 <= found.rank < 30
    np.testing.assert_allclose(found.values[: found.rank], truth[: found.rank], rtol=0.2)


def test_interval_covers_at_its_level() -> None:
    """300 trials; test_interval_coverage_in_full runs 1000."""
    assert 0.92 <= coverage(300) <= 0.98


@pytest.mark.slow
def test_interval_coverage_in_full() -> None:
    assert 0.93 <= coverage(1000) <= 0.97


def coverage(trials: int) -> float:
    truth = torch.tensor([64.0, 16.0, 4.0, 1.0], dtype=torch.float64)
    inside = 0
    for seed in range(trials):
        values = spectrum.resolve(moments.partial(draws(seed, 500, truth.sqrt()))).values
        low, high = spectrum.interval(values, 500, 0.95)
        inside += int(((low <= truth) & (truth <= high)).sum())
    return inside / (trials * len(truth))


def test_subspace_error_predicts_the_mean_angle() -> None:
    truth = torch.cat([torch.tensor([25.0, 16.0]), torch.ones(8)]).double()
    seen = []
    for seed in range(300):
        vectors = spectrum.resolve(moments.partial(draws(seed, 1000, truth.sqrt()))).vectors[:2]
        seen.append(2 - float(vectors[:, :2].square().sum()))
    assert np.mean(seen) == pytest.approx(spectrum.subspace_error(truth, 2, 1000), rel=0.06)


def test_subspace_error_without_a_gap_is_infinite() -> None:
    assert spectrum.subspace_error(torch.ones(4, dtype=torch.float64), 2, 100) == math.inf
    assert spectrum.subspace_error(torch.ones(4, dtype=torch.float64), 4, 100) == 0


@pytest.mark.parametrize(("rows", "limit"), [(50, 0.02), (20, 0.03)])
def test_participation_ratio_without_bias(rows: int, limit: float) -> None:
    spread = torch.ones(200, dtype=torch.float64)
    found = [unbiased(draws(seed, rows, spread)) for seed in range(200)]
    naive = [
        spectrum.participation_ratio(spectrum.resolve(moments.partial(draws(seed, rows, spread))).values)
        for seed in range(2)
    ]
    assert np.mean(found) == pytest.approx(200, rel=limit)
    assert max(naive) < 0.25 * 200


def test_participation_ratio_under_heavy_tails() -> None:
    found = [unbiased(draws(seed, 50, torch.ones(200, dtype=torch.float64), "t5")) for seed in range(200)]
    assert np.mean(found) == pytest.approx(200, rel=0.04)


def test_participation_ratio_without_bias_against_all_pairs() -> None:
    """The estimate of tr(Sigma^2) equals the U-statistic over quadruples, written out for few rows."""
    x = draws(5, 6, torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)).numpy()
    n = len(x)
    quadruples = [
        (x[i] - x[j]) @ (x[k] - x[m])
        for i in range(n)
        for j in range(n)
        for k in range(n)
        for m in range(n)
        if len({i, j, k, m}) == 4
    ]
    below = np.mean(np.square(quadruples)) / 4
    squares = [
        ((x[i] - x[j]) @ (x[i] - x[j])) * ((x[k] - x[m]) @ (x[k] - x[m]))
        for i in range(n)
        for j in range(n)
        for k in range(n)
        for m in range(n)
        if len({i, j, k, m}) == 4
    ]
    assert unbiased(torch.from_numpy(x)) == pytest.approx(np.mean(squares) / 4 / below, rel=1e-10)


def test_participation_ratio_does_not_depend_on_merging() -> None:
    x = draws(1, 300, GEOMETRIC.sqrt()) + 5
    state = moments.partial(x[:10])
    for piece in x[10:].split(37):
        state = moments.merge(state, moments.partial(piece))
    square = float(moments.covariance(state).square().sum())
    merged = spectrum.participation_ratio_unbiased(
        moments.trace(state), square, moments.fourth(state), len(x)
    )
    assert merged == pytest.approx(unbiased(x), rel=1e-10)


def test_participation_ratio_needs_four_rows() -> None:
    assert math.isnan(unbiased(draws(0, 3, torch.ones(4, dtype=torch.float64))))


def test_geometric_spectrum_in_closed_form() -> None:
    q, d, total = 0.9, 200, float(GEOMETRIC.sum())
    expected = (1 + q) * (1 - q**d) / ((1 - q) * (1 + q**d))
    assert spectrum.participation_ratio(GEOMETRIC) == pytest.approx(expected, rel=1e-12)
    assert spectrum.top_share(GEOMETRIC, 1, total) == pytest.approx((1 - q) / (1 - q**d), rel=1e-12)
    assert spectrum.stable_rank(GEOMETRIC, total) == pytest.approx((1 - q**d) / (1 - q), rel=1e-12)
    entropy = entr((GEOMETRIC / total).numpy()).sum()
    assert spectrum.effective_rank(GEOMETRIC) == pytest.approx(math.exp(entropy), rel=1e-12)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_flat_spectrum_counts_its_directions(k: int) -> None:
    values = torch.cat([torch.full((k,), 3.0), torch.zeros(60 - k)]).double()
    for number in (
        spectrum.participation_ratio(values),
        spectrum.effective_rank(values),
        spectrum.stable_rank(values, 3.0 * k),
    ):
        assert number == pytest.approx(k, rel=1e-12)
    assert spectrum.components_for(values, 1.0, 3.0 * k) == k


@pytest.mark.parametrize(("share", "expected"), [(0.4, 1), (0.41, 2), (0.7, 2), (0.9, 3), (1.0, 4)])
def test_components_for_a_share(share: float, expected: int) -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert spectrum.components_for(values, share, 10.0) == expected


def test_shares_use_the_exact_trace() -> None:
    assert spectrum.top_share(torch.tensor([4.0, 3.0], dtype=torch.float64), 2, 10.0) == 0.7
    assert spectrum.components_for(torch.tensor([4.0, 3.0], dtype=torch.float64), 0.99, 10.0) == 2


def test_blocks_join_overlapping_intervals() -> None:
    values = torch.tensor([9.0, 4.0, 3.9, 3.8, 1.0], dtype=torch.float64)
    assert spectrum.blocks(values - 0.07, values + 0.07).tolist() == [0, 1, 1, 1, 2]
    assert spectrum.blocks(values[:0], values[:0]).tolist() == []


def test_unexplained_area_is_the_double_sum() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert spectrum.unexplained_area(values, 3, 10.0) == pytest.approx(6 + 3 + 1)


def test_no_variance_has_no_dimension() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    assert math.isnan(spectrum.participation_ratio(zeros))
    assert math.isnan(spectrum.effective_rank(zeros))
    assert math.isnan(spectrum.top_share(zeros, 1, 0.0))

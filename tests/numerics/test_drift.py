"""Differences of two samples of rows beside plain formulas, rates that hold whatever the sizes are, planted drifts, and samples of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tasks.numerics import drift
from tasks.numerics.angles import distances
from tasks.numerics.drift import STATISTICS, Compared, dealt

ALPHA = 0.1


def compare(x: np.ndarray, y: np.ndarray, deals: int = 39, per_unit: int = 1, seed: int = 0) -> Compared:
    units = torch.arange(len(x)) // per_unit, torch.arange(len(y)) // per_unit
    return drift.compared(torch.from_numpy(x), torch.from_numpy(y), units, 3, deals, ALPHA, seed)


def spread(rng: np.random.Generator, n: int, d: int = 8) -> np.ndarray:
    return rng.standard_normal((n, d)) * np.geomspace(3, 0.2, d)


def leading(x: np.ndarray, k: int) -> torch.Tensor:
    return torch.from_numpy(np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:k].copy())


def discrepancy(x: np.ndarray, y: np.ndarray, width: float, units: tuple[np.ndarray, np.ndarray]) -> float:
    """Means of the kernel over pairs of different units."""
    kernel = [np.exp(-0.5 * (cdist(a, b) / width) ** 2) for a, b in ((x, x), (y, y), (x, y))]
    apart = [unit[:, None] != unit for unit in units]
    return float(kernel[0][apart[0]].mean() + kernel[1][apart[1]].mean() - 2 * kernel[2].mean())


@given(n=st.integers(6, 30), m=st.integers(6, 30), d=st.integers(3, 9), per_unit=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_effects_are_those_of_plain_formulas(n: int, m: int, d: int, per_unit: int) -> None:
    rng = np.random.default_rng(n * 100 + m)
    x, y = spread(rng, n, d), spread(rng, m, d) * 1.3 + 0.5
    found = compare(x, y, 1, per_unit)
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    inside = ((n - 1) * np.trace(cov_x) + (m - 1) * np.trace(cov_y)) / (n + m - 2)
    unit_x, unit_y = np.arange(n) // per_unit, np.arange(m) // per_unit
    units = np.r_[unit_x, unit_y + n]
    between = cdist(*[np.r_[x, y]] * 2)[units[:, None] != units]
    width = float(np.sort(between)[(len(between) - 1) // 2])
    apart = distances(leading(x, 3), leading(y, 3))
    expected = [
        np.linalg.norm(x.mean(0) - y.mean(0)) / np.sqrt(inside),
        np.log(np.trace(cov_y) / np.trace(cov_x)),
        np.linalg.norm(cov_x - cov_y) / np.linalg.norm(np.cov(np.r_[x, y].T, bias=True)),
        apart.geodesic,
        apart.chordal,
        discrepancy(x, y, width, (unit_x, unit_y)),
    ]
    assert found.width == pytest.approx(width, rel=1e-6)
    np.testing.assert_allclose(found.effect, expected, rtol=1e-6, atol=1e-7)


def test_p_values_are_counts_of_deals() -> None:
    """The same sides, dealt by hand, for the distance of means and the discrepancy."""
    rng = np.random.default_rng(0)
    x, y = spread(rng, 12), spread(rng, 9) + 0.3
    found, rows = compare(x, y, 60), np.r_[x, y]
    sides = dealt(torch.arange(21), 12, 60, 0).numpy().astype(bool)
    assert sides[0].tolist() == [True] * 12 + [False] * 9
    assert (sides.sum(1) == 12).all()
    for number, name in ((0, "mean"), (5, "mmd")):
        values = [compare(rows[s], rows[~s], 1).effect[number].item() for s in sides]
        assert STATISTICS[number] == name
        assert float(found.p[number]) == np.mean(np.array(values) >= values[0] - 1e-12)
        assert float(found.chance[number]) == pytest.approx(np.mean(values[1:]), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "per_unit"), [(20, 20, 1), (60, 15, 1), (15, 60, 1), (40, 40, 4)])
def test_nothing_drifts_at_the_wanted_rate(n: int, m: int, per_unit: int) -> None:
    """Of 300 pairs of samples of one law, with rows of one unit alike: 99.9 % of the binomial law."""
    rng, told = np.random.default_rng(n + m), np.zeros(len(STATISTICS))
    for seed in range(300):
        x, y = (
            spread(rng, k)
            + np.repeat(2 * rng.standard_normal((k // per_unit, 8)), per_unit, 0) * (per_unit > 1)
            for k in (n, m)
        )
        told += (compare(x, y, 19, per_unit, seed).p <= ALPHA).numpy()
    assert (told >= 13).all()
    assert (told <= 49).all()


def test_rows_of_one_sample_dealt_one_by_one_would_be_taken_for_drift() -> None:
    rng = np.random.default_rng(5)
    x, y = (np.repeat(rng.standard_normal((8, 8)), 10, 0) + 0.1 * rng.standard_normal((80, 8)) for _ in "xy")
    assert float(compare(x, y, 99).p[0]) == 0.01
    assert float(compare(x, y, 99, 10).p[0]) > 0.05


@pytest.mark.parametrize("name", STATISTICS)
def test_planted_drifts_are_found(name: str) -> None:
    rng = np.random.default_rng(1)
    x, y = spread(rng, 150), spread(rng, 150)
    if name in ("mean", "mmd"):
        y += 0.8
    elif name == "variance":
        y *= 1.4
    else:
        y = y[:, [0, 3, 2, 1, 4, 5, 6, 7]]  # the second direction changes places with the fourth
        y[:, 3] *= 1.5
    found = compare(x, y, 99)
    assert float(found.p[STATISTICS.index(name)]) == 0.01
    assert float(found.effect[STATISTICS.index(name)]) > float(found.high[STATISTICS.index(name)])


@pytest.mark.parametrize("wide", [False, True])
def test_rows_that_do_not_vary_do_not_drift(wide: bool) -> None:
    """All alike; and alike but for one feature, with fewer rows than features."""
    same = np.full((8, 20 if wide else 3), 2.0)
    found = compare(same, same)
    assert bool((found.p == 1).all())
    assert bool(found.effect.isfinite().all())
    one = same.copy()
    one[:, 0] = np.arange(8)
    assert bool(compare(one, one[::-1].copy()).effect.isfinite().all())


def test_equal_samples_have_no_angle() -> None:
    x = spread(np.random.default_rng(2), 40)
    found = compare(x, x)
    np.testing.assert_allclose(found.effect[:5], 0, atol=1e-7)
    assert bool((found.p[:5] == 1).all())

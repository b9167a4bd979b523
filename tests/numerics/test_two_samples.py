"""Welch's test beside scipy, features that never vary, and corrections beside plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.numerics.two_samples import adjusted, compared, sample_of

P = st.lists(st.floats(0, 1), max_size=30)


def test_it_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = 3 * rng.standard_normal((17, 6)) + np.arange(6), rng.standard_normal((40, 6))
    found = compared(*(sample_of(torch.from_numpy(x)) for x in (one, other)))
    np.testing.assert_allclose(found.p, stats.ttest_ind(one, other, equal_var=False).pvalue, rtol=1e-10)
    spread = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 2)
    np.testing.assert_allclose(found.effect, (one.mean(0) - other.mean(0)) / spread, rtol=1e-10)


def test_features_that_never_vary() -> None:
    """Alike: nothing to find; apart: no doubt; rounding is neither a difference nor a spread."""
    one, other = torch.full((5, 3), 0.1, dtype=torch.float64), torch.full((7, 3), 0.1, dtype=torch.float64)
    other[:, 1] = 2
    other[:, 2] *= 1 + torch.finfo(torch.float64).eps
    found = compared(sample_of(one * 3 / 3), sample_of(other))
    assert found.p.tolist() == [1, 0, 1]
    assert found.effect.tolist() == [0, -torch.inf, 0]


@given(P)
def test_corrections(p: list[float]) -> None:
    found = adjusted(torch.tensor(p, dtype=torch.float64), "holm").tolist()
    order, worst, expected = np.argsort(p), 0.0, dict[int, float]()
    for place, which in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - place) * p[which]))
        expected[int(which)] = worst
    assert found == pytest.approx([expected[k] for k in range(len(p))])
    for alpha in (0.05, 0.5):
        ranks = [k for k in range(1, len(p) + 1) if sorted(p)[k - 1] <= alpha * k / len(p)]
        below = sorted(p)[max(ranks) - 1] if ranks else -1.0
        bh = adjusted(torch.tensor(p, dtype=torch.float64), "bh").tolist()
        for value, q in zip(p, bh, strict=True):
            assert (q <= alpha) == (value <= below) or q == pytest.approx(alpha)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_holm_rejects_as_its_steps_do(counts: list[int]) -> None:
    p = np.array(counts) / 40
    order, rejected = np.argsort(p, kind="stable"), np.zeros(len(p), dtype=bool)
    for step, place in enumerate(order):
        if p[place] * (len(p) - step) > 0.2:
            break
        rejected[place] = True
    found = adjusted(torch.from_numpy(p), "holm")
    np.testing.assert_array_equal((found <= 0.2).numpy(), rejected)
    assert bool((found >= torch.from_numpy(p)).all())

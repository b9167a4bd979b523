"""Merged p-values: at most any level as often as they may be, whatever the dependence, and by hand."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from tasks.numerics.merged_p_values import FACTORS, Rule, merged

RULES: tuple[Rule, ...] = get_args(Rule)
N = 200_000


def dependent(kind: str, k: int, rng: np.random.Generator) -> np.ndarray:
    """[row, k] of uniform columns."""
    u = rng.random(N)
    if kind == "equal":
        return np.repeat(u[:, None], k, 1)
    if kind == "independent":
        return rng.random((N, k))
    if kind == "opposed":
        return np.stack([u if n % 2 else 1 - u for n in range(k)], 1)
    shifts = np.arange(k) / k  # one of them is small much more often than either alone
    return (u[:, None] + shifts) % 1


@pytest.mark.parametrize("kind", ["equal", "independent", "opposed", "shifted"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [2, 3, 6])
def test_the_level_holds_for_any_dependence(rule: Rule, kind: str, k: int) -> None:
    p = dependent(kind, k, np.random.default_rng(k)).clip(1e-12, 1)
    found = merged(torch.from_numpy(p), rule).numpy()
    for level in (0.001, 0.01, 0.05, 0.2):
        reach = 4 * math.sqrt(level * (1 - level) / N)
        assert (found <= level).mean() <= level + reach


def test_bonferroni_is_reached_by_the_worst_dependence() -> None:
    p = dependent("shifted", 4, np.random.default_rng(0)).clip(1e-12, 1)
    found = merged(torch.from_numpy(p), "least").numpy()
    assert abs((found <= 0.1).mean() - 0.1) < 0.005


@pytest.mark.parametrize("rule", RULES)
def test_by_hand(rule: Rule) -> None:
    p = torch.tensor([[0.5, 0.25, 0.125], [1, 1, 1]], dtype=torch.float64)
    means = {"least": 0.125, "harmonic": 3 / 14, "geometric": 0.25, "mean": 0.875 / 3}
    factors = {"least": 3.0, "harmonic": math.e * math.log(3), "geometric": math.e, "mean": 2.0}
    np.testing.assert_allclose(merged(p, rule), [means[rule] * factors[rule], factors[rule]], rtol=1e-14)
    assert FACTORS[rule](1) == 1


def test_a_missing_p_value_leaves_none() -> None:
    p = torch.tensor([[0.5, torch.nan]], dtype=torch.float64)
    assert all(bool(merged(p, rule).isnan().all()) for rule in RULES)

"""Budgets: against all combinations, and the order of greedy steps."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import MethodError
from tasks.numerics.budget import Ways, cheapest, dealt


def falling(n: int, seed: int) -> Ways:
    """Convex losses over costs that rise."""
    rng = np.random.default_rng(seed)
    cost = np.cumsum(rng.integers(1, 5, n)).astype(float)
    slopes = np.sort(rng.random(n - 1))[::-1]
    return Ways(cost, 10 - np.concatenate([[0.0], np.cumsum(slopes * np.diff(cost))]))


def best(ways: list[Ways], budget: float) -> float:
    every = itertools.product(*(range(len(way.cost)) for way in ways))
    fitting = [c for c in every if sum(w.cost[k] for w, k in zip(ways, c, strict=True)) <= budget]
    return min(sum(float(w.loss[k]) for w, k in zip(ways, c, strict=True)) for c in fitting)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1), n=st.integers(2, 5))
def test_exact_for_the_cost_that_is_reached(seed: int, share: float, n: int) -> None:
    ways = [falling(n, 3 * seed + k) for k in range(3)]
    low, high = cheapest(ways), sum(float(way.cost[-1]) for way in ways)
    chosen = dealt(ways, low + share * (high - low))
    spent = sum(float(way.cost[k]) for way, k in zip(ways, chosen, strict=True))
    loss = sum(float(way.loss[k]) for way, k in zip(ways, chosen, strict=True))
    assert low <= spent <= low + share * (high - low) + 1e-9
    largest_step = max(float(np.abs(np.diff(way.loss)).max()) for way in ways)
    assert best(ways, spent) - 1e-9 <= loss <= best(ways, low + share * (high - low)) + largest_step


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000))
def test_equal_prices_are_exact_for_any_budget(seed: int) -> None:
    """As the ranks of layers of one shape."""
    rng = np.random.default_rng(seed)
    ways = [
        Ways(np.arange(5.0), 9 - np.concatenate([[0], np.cumsum(np.sort(rng.random(4))[::-1])]))
        for _ in range(3)
    ]
    for budget in range(13):
        chosen = dealt(ways, budget)
        loss = sum(float(way.loss[k]) for way, k in zip(ways, chosen, strict=True))
        assert loss == pytest.approx(best(ways, budget))


def test_ways_beside_the_hull_take_what_is_left() -> None:
    way = Ways(np.array([1.0, 2.0, 3.0, 3.0, 4.0]), np.array([10.0, 9.9, 1.0, 0.5, 0.7]))
    assert dealt([way], 1.5) == [0]
    assert dealt([way], 2.5) == [1]  # the next on the hull costs 3
    assert dealt([way], 3) == [3]
    assert dealt([way], 99) == [3]  # the dearest loses more


def test_a_long_last_step_leaves_nothing_unspent() -> None:
    """As of ranks, of which the last that pays is far from the layer as it is."""
    way = Ways(np.append(np.arange(1.0, 8), 12.0), np.append(8 - np.arange(1.0, 8) ** 0.5, 0.0))
    assert dealt([way], 7.5) == [6]
    assert dealt([way, way], 15) == [7, 2]  # one as it is, and what is left for the other


def test_a_budget_below_the_cheapest() -> None:
    with pytest.raises(MethodError, match="cheapest ways cost 2"):
        dealt([Ways(np.array([2.0]), np.array([0.0]))], 1)

"""Packing: every sample once, within the budget, the same every time."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tasks.extract.batches import pack

LENGTHS = st.lists(st.integers(0, 300), max_size=80)


@given(LENGTHS, st.integers(1, 600), st.integers(1, 20))
def test_every_index_once_and_within_the_budget(lengths: list[int], budget: int, most: int) -> None:
    batches = pack(lengths, budget, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        widest = max(lengths[index] for index in batch)
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or len(batch) * widest <= budget


@given(LENGTHS, st.integers(1, 600), st.integers(1, 20))
def test_longest_first_and_ties_in_given_order(lengths: list[int], budget: int, most: int) -> None:
    order = [index for batch in pack(lengths, budget, most) for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    assert pack(lengths, budget, most) == pack(list(lengths), budget, most)


def least_cost(lengths: list[int], budget: int, most: int, overhead: int) -> int:
    """The cheapest of all ways to cut the sorted lengths into runs."""
    ordered = sorted((max(1, length) for length in lengths), reverse=True)
    costs = []
    for cuts in itertools.product((False, True), repeat=max(0, len(ordered) - 1)):
        bounds = [0, *(n + 1 for n, cut in enumerate(cuts) if cut), len(ordered)]
        runs = [ordered[low:high] for low, high in itertools.pairwise(bounds)]
        if all(len(run) == 1 or (len(run) <= most and len(run) * run[0] <= budget) for run in runs):
            costs.append(sum(len(run) * run[0] + overhead for run in runs))
    return min(costs)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=9),
    st.integers(1, 120),
    st.integers(1, 6),
    st.integers(0, 40),
)
def test_no_other_packing_costs_less(lengths: list[int], budget: int, most: int, overhead: int) -> None:
    batches = pack(lengths, budget, most, overhead)
    cost = sum(len(batch) * max(1, *(lengths[index] for index in batch), 0) + overhead for batch in batches)
    assert cost == least_cost(lengths, budget, most, overhead)


def test_a_worked_example() -> None:
    lengths = [5, 9, 5, 2, 20]
    assert pack(lengths, budget_tokens=18, max_samples=3, overhead=0) == [[4], [1], [0, 2], [3]]
    assert pack(lengths, budget_tokens=18, max_samples=3, overhead=4) == [[4], [1], [0, 2, 3]]


def test_empty() -> None:
    assert pack([], 10, 10) == []

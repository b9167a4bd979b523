"""Lists of edges against a dictionary, whatever is listed how often and in which direction."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.numerics.edge_list import undirected

LINES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.0, 0.5, 1.0, 3.0])))


@given(lines=LINES)
def test_pairs_are_those_of_a_dictionary(lines: list[tuple[int, int, float]]) -> None:
    directed: dict[tuple[int, int], float] = {}
    for a, b, w in lines:
        if a != b:
            directed[a, b] = directed.get((a, b), 0.0) + w
    pairs = {(min(p), max(p)): max(directed.get(p, 0.0), directed.get(p[::-1], 0.0)) for p in directed}
    expected = {p: w for p, w in sorted(pairs.items()) if w > 0}
    columns = np.array([(a, b) for a, b, _ in lines], dtype=np.int64).reshape(-1, 2).T
    found = undirected(*columns, np.array([w for *_, w in lines], dtype=np.float64))
    assert [tuple(pair) for pair in found.ends.tolist()] == list(expected)
    np.testing.assert_array_equal(found.weights, list(expected.values()))
    assert found.loops == sum(a == b for a, b, _ in lines)
    assert found.repeated == len(lines) - found.loops - len(directed)
    assert found.weightless == len(pairs) - len(expected)


def test_both_directions_say_the_same_as_one() -> None:
    source, target, weight = np.array([0, 3, 1]), np.array([2, 1, 2]), np.array([1.0, 2.0, 0.5])
    once = undirected(source, target, weight)
    twice = undirected(np.append(source, target), np.append(target, source), np.append(weight, weight))
    np.testing.assert_array_equal(once.ends, twice.ends)
    np.testing.assert_array_equal(once.weights, twice.weights)
    assert (once.repeated, twice.repeated) == (0, 0)

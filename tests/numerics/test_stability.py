"""Agreement of clusterings of parts: against scikit-learn's index pair by pair, and the jackknife by hand."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from tasks.numerics.stability import Stability, clustered_parts, most_stable, parts_of_rows, stability


def test_mean_over_pairs_and_its_error() -> None:
    rng = np.random.default_rng(0)
    parts = parts_of_rows(60, 5, 0.7, 1)
    labels = clustered_parts(parts, 60, lambda rows: rng.integers(0, 3, (2, len(rows))))
    found = stability(labels)
    assert [len(rows) for rows in parts] == [42] * 5
    for number in range(2):
        pair = {}
        for a, b in combinations(range(5), 2):
            both = np.intersect1d(parts[a], parts[b])
            pair[a, b] = adjusted_rand_score(labels[a][number, both], labels[b][number, both])
        assert found.agreement[number] == pytest.approx(np.mean(list(pair.values())), abs=1e-12)
        without = [np.mean([v for key, v in pair.items() if k not in key]) for k in range(5)]
        assert found.error[number] == pytest.approx(np.sqrt(4 * np.var(without)), abs=1e-12)


def test_the_finest_of_those_that_agree_as_well() -> None:
    found = Stability(np.array([1.0, 0.6, 0.99, 0.8]), np.array([0.02, 0.1, 0.01, 0.1]))
    assert most_stable(range(2, 6), found) == 4


def test_parts_are_of_the_seed() -> None:
    a, b, c = (parts_of_rows(50, 3, 0.5, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0], c[0])


def test_two_parts_have_no_error() -> None:
    with pytest.raises(ValueError, match="found 2 parts"):
        stability([np.zeros((1, 4), dtype=np.int64)] * 2)

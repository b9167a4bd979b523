"""Agreement of partitions: against all permutations, and scikit-learn."""

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from tasks.numerics.agreement import agreement, counted


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 200),
    clusters=st.integers(1, 6),
    classes=st.integers(1, 6),
    missing=st.booleans(),
)
def test_it_is_what_scikit_learn_and_all_permutations_give(
    seed: int, n: int, clusters: int, classes: int, missing: bool
) -> None:
    rng = np.random.default_rng(seed)
    of = rng.integers(-missing, classes, n)
    cluster = np.where(rng.random(n) < 0.5, of % clusters, rng.integers(-missing, clusters, n))
    table = counted(cluster, of, clusters, classes)
    found = agreement(table)
    known = (cluster >= 0) & (of >= 0)
    if not known.any():
        assert found is None
        return
    assert found is not None
    a, b = of[known], cluster[known]
    assert table.sum() == known.sum()
    most = max(clusters, classes)
    best = max(np.mean(np.array(p)[b] == a) for p in permutations(range(most)))
    assert found.accuracy == pytest.approx(best, abs=1e-12)
    assert found.adjusted_rand == pytest.approx(metrics.adjusted_rand_score(a, b), abs=1e-12)
    nmi = metrics.normalized_mutual_info_score(a, b)
    assert found.normalised_mutual_information == pytest.approx(nmi, abs=1e-12)
    purest = sum(np.bincount(a[b == k]).max() for k in set(b)) / len(a)
    assert found.purity == pytest.approx(purest, abs=1e-12)


def test_pairs_of_many_rows_are_counted_exactly() -> None:
    """Squares of counts beyond 2^53, where floating point would round."""
    table = np.array([[3_000_000_000, 1], [2, 4_000_000_001]])
    two = [[math.comb(int(c), 2) for c in part] for part in (table.flat, table.sum(1), table.sum(0))]
    both, a, b = map(sum, two)
    expected = Fraction(a * b, math.comb(int(table.sum()), 2))
    found = agreement(table)
    assert found is not None
    assert found.adjusted_rand == float((both - expected) / (Fraction(a + b, 2) - expected))
    assert agreement(np.diag([5, 7, 9]))[:3] == (1.0, 1.0, 1.0)

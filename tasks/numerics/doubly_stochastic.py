"""The nearest matrix to a sparse one whose rows and columns sum to 1: what is weak falls to exactly 0, and no row dominates.

Over symmetric A >= 0 with A 1 = 1 and no loops, the minimum of |A|^2 eta / 2 - <|C|, A> is A_ij = [|C_ij| + a_i + a_j]_+ / eta, where a
maximises 2 sum a - sum_ij [..]_+^2 / (2 eta): concave and piecewise quadratic, so Newton's method ends in a few steps. Only pairs with
C_ij != 0 are looked at, and those others whose a_i + a_j comes out positive: these are added until there are none, which proves the answer
to be that of the whole matrix.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from tasks.numerics.graphs import Matrix, least_entry

MOST_STEPS = 500
MOST_PAIRS = 30
"""Pairs a row, on average, beyond which a step is shortened."""
ENOUGH = 1e-9
"""Error of a row's sum."""


class Stochastic(NamedTuple):
    """The projection."""

    graph: Matrix
    error: float
    """Largest distance of a row's sum from 1."""
    potential: np.ndarray
    """float64 [row]: a."""


class _Pairs(NamedTuple):
    """Pairs of rows, the lower one first, in order, and what each counts."""

    key: np.ndarray
    """int64 [pair]: low * n + high, ascending."""
    value: np.ndarray
    n: int

    @property
    def low(self) -> np.ndarray:
        return np.asarray(self.key // self.n)

    @property
    def high(self) -> np.ndarray:
        return np.asarray(self.key % self.n)

    def slack(self, a: np.ndarray) -> np.ndarray:
        """What is left of each pair's size."""
        return np.asarray(self.value + a[self.low] + a[self.high])

    def sums(self, weight: np.ndarray) -> np.ndarray:
        """Over the pairs of each row."""
        return np.bincount(self.low, weight, self.n) + np.bincount(self.high, weight, self.n)


def doubly_stochastic(size: Matrix, eta: float) -> Stochastic:
    """The projection of symmetric sizes without loops.

    Args:
        size: symmetric, not negative, no loops; at least two rows.
        eta: weight of the squares: small ones keep few and strong edges, large ones make all alike.

    Cost: some tens of sparse linear systems with as many unknowns as rows.
    """
    found = sparse.triu(sparse.coo_array(size), 1).tocsr().tocoo()
    n = size.shape[0]
    given = _Pairs(found.row.astype(np.int64) * n + found.col, found.data.astype(np.float64), n)
    pairs, a = _maximised(given, np.full(n, -given.value.max(initial=0.0) / 2), eta)
    weight = np.maximum(pairs.slack(a), 0) / eta
    row, column = np.r_[pairs.low, pairs.high], np.r_[pairs.high, pairs.low]
    graph = Matrix((np.r_[weight, weight], (row, column)), shape=(n, n))
    graph.eliminate_zeros()
    return Stochastic(graph, float(np.abs(pairs.sums(weight) - 1).max()), a)


def unproven(c: Matrix, cut: np.ndarray, potential: np.ndarray) -> int:
    """Rows of which coefficients that are left out could change the projection of (|C| + |C|') / 2: 0 proves it to be that of all.

    Args:
        c: the largest coefficients of each row, not symmetric where only one of two rows keeps a pair.
        cut: bool [row]: whether a row has others, none larger than its smallest.
        potential: of the projection.

    Cost: a sort of the coefficients.
    """
    n, size = c.shape[0], sparse.coo_array(abs(c))
    rest = np.where(cut, least_entry(c), 0.0) / 2
    slack = rest + potential
    doubtful = slack + np.where(cut, _largest_other(slack), _largest_other(np.where(cut, slack, -np.inf))) > 0
    row, other = size.row.astype(np.int64), size.col.astype(np.int64)
    one_way = cut[other] & ~np.isin(other * n + row, row * n + other)
    changed = one_way & (size.data / 2 + potential[row] + slack[other] > 0)
    doubtful[row[changed]] = doubtful[other[changed]] = True
    return int(doubtful.sum())


def _largest_other(values: np.ndarray) -> np.ndarray:
    """Of each place the largest value at all others; -inf without any."""
    order = np.argsort(-values, kind="stable")[:2]
    second = values[order[1]] if len(order) > 1 else -np.inf
    return np.where(np.arange(len(values)) == order[0], second, values[order[0]])


def _maximised(given: _Pairs, a: np.ndarray, eta: float) -> tuple[_Pairs, np.ndarray]:
    """The maximiser, with all pairs whose slack is positive."""
    pairs = given
    for _ in range(MOST_STEPS):
        slack = pairs.slack(a)
        short = 1 - pairs.sums(np.maximum(slack, 0)) / eta
        if np.abs(short).max() <= ENOUGH:
            break
        for step in (_newton(pairs, slack, short * eta, a, eta), short * eta / max(pairs.n, 1)):
            moved = _along(given, pairs, a, step, short, eta)
            if moved is not None:
                break
        if moved is None:
            break
        pairs, a = moved
    return pairs, a


def _along(
    given: _Pairs, pairs: _Pairs, a: np.ndarray, step: np.ndarray, short: np.ndarray, eta: float
) -> tuple[_Pairs, np.ndarray] | None:
    """The largest part of a step that gains enough, halving it; None where none does."""
    here, gain = _value(pairs, a, eta), float(2 * (short @ step))
    if gain <= 0:
        return None
    part = 1.0
    while part > 1e-10:
        there = a + part * step
        more = _with_positive(given, there)
        if more is not None and _value(more, there, eta) >= here + 1e-4 * part * gain - 1e-15 * abs(here):
            return more, there
        part /= 2
    return None


def _value(pairs: _Pairs, a: np.ndarray, eta: float) -> float:
    return float(2 * a.sum() - (np.maximum(pairs.slack(a), 0) ** 2).sum() / eta)


def _newton(pairs: _Pairs, slack: np.ndarray, right: np.ndarray, a: np.ndarray, eta: float) -> np.ndarray:
    """Newton's step for rows with weight; for others, to where their best pair would have weight 1."""
    on = slack > 0
    low, high, ones = pairs.low[on], pairs.high[on], np.ones(int(on.sum()))
    degree = np.bincount(low, minlength=pairs.n) + np.bincount(high, minlength=pairs.n)
    joined = Matrix((np.r_[ones, ones], (np.r_[low, high], np.r_[high, low])), shape=(pairs.n, pairs.n))
    matrix = Matrix(joined + sparse.diags_array(degree + 1e-7 + (degree == 0)))
    inverse = sparse.diags_array(1 / matrix.diagonal())
    step, _ = cg(matrix, right, rtol=1e-8, maxiter=1000, M=inverse)
    best = np.full(pairs.n, -np.inf)
    np.maximum.at(best, pairs.low, slack)
    np.maximum.at(best, pairs.high, slack)
    order = np.argsort(-a, kind="stable")[:2]
    other = a + np.where(np.arange(pairs.n) == order[0], a[order[-1]], a[order[0]])
    raised: np.ndarray = np.where(degree == 0, eta - np.maximum(best, other), step)
    return raised


def _with_positive(given: _Pairs, a: np.ndarray) -> _Pairs | None:
    """With all other pairs whose potentials add to more than 0; None where these are too many."""
    order = np.argsort(-a, kind="stable")
    falling = a[order]
    partners = np.searchsorted(
        -falling, falling, side="left"
    )  # places whose potential exceeds minus one's own
    partners = np.maximum(
        partners - np.arange(given.n) - 1, 0
    )  # those behind it, so that each pair is met once
    if partners.sum() > MOST_PAIRS * given.n:
        return None
    first = np.repeat(np.arange(given.n), partners)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners)
    one, two = order[first], order[second]
    key = np.minimum(one, two) * given.n + np.maximum(one, two)
    place = np.minimum(np.searchsorted(given.key, key), max(len(given.key) - 1, 0))
    key = key[given.key[place] != key] if len(given.key) else key
    if not len(key):
        return given
    key, value = np.r_[given.key, key], np.r_[given.value, np.zeros(len(key))]
    ascending = np.argsort(key, kind="stable")
    return _Pairs(key[ascending], value[ascending], given.n)

"""How stable the factors of repeated non-negative factorisations are: clusters with one factor of every run, and their silhouettes.

On the CPU, in NumPy.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_samples
from threadpoolctl import threadpool_limits

ROUNDS = 50
"""Of assigning factors, at most."""


class Factors(NamedTuple):
    """Of one factorisation."""

    factor: np.ndarray
    """[factor, feature], rows of length 1; zero for a factor that is not used."""
    error: float
    """Frobenius norm of what is left out over that of the rows."""
    converged: bool


class Stability(NamedTuple):
    """Of the factors of several runs."""

    centre: np.ndarray
    """[factor, feature], of length 1."""
    silhouette: np.ndarray
    """[factor]: mean over the factors of a cluster, by cosine distance; 1 for runs that agree, 0 or less for ones that do not."""


def factorise(x: np.ndarray, k: int, iterations: int, seed: int) -> Factors:
    """Non-negative x as W H with k rows of H, from a random start.

    Cost: iterations * x.size * k.
    """
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = NMF(k, init="random", max_iter=iterations, random_state=seed)
        model.fit(x)
    length = np.linalg.norm(model.components_, axis=1, keepdims=True)
    factor = model.components_ / np.where(length > 0, length, 1)
    return Factors(factor, float(model.reconstruction_err_ / np.linalg.norm(x)), model.n_iter_ < iterations)


def stability(runs: list[Factors]) -> Stability:
    """Clusters with one factor of each run, begun at the run of least error and assigned by cosines until nothing moves."""
    every = np.stack([run.factor for run in runs])
    centre = min(runs, key=lambda run: run.error).factor
    place = np.full(every.shape[:2], -1)
    for _ in range(ROUNDS):
        found = np.stack([linear_sum_assignment(-centre @ factor.T)[1] for factor in every])
        if (found == place).all():
            break
        place = found
        sums = np.take_along_axis(every, place[:, :, None], 1).sum(0)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centre = sums / np.where(length > 0, length, 1)
    k = len(centre)
    if k == 1:
        return Stability(centre, np.ones(1))
    ordered = np.take_along_axis(every, place[:, :, None], 1).reshape(-1, every.shape[2])
    label = np.tile(np.arange(k), len(runs))
    apart = np.clip(1 - ordered @ ordered.T, 0, None)
    np.fill_diagonal(apart, 0)
    values = silhouette_samples(apart, label, metric="precomputed")
    return Stability(centre, np.array([values[label == c].mean() for c in range(k)]))

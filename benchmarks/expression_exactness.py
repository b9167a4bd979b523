"""How exactly rows are expressed, beside plain loops and scikit-learn: a part of `benchmarks.self_expression`.

ssc_omp      a loop row by row: the most aligned row is taken, `numpy.linalg.lstsq` on the rows taken so far
elastic_net  `sklearn.linear_model.ElasticNet` (tolerance 1e-12) over all other rows, for every tenth row
tsc          all cosines, sorted
lsr          the inverse of the Gram matrix of rows by rows

Rows come from a store, in float32, and are taken as float64 on both sides.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import ElasticNet

from benchmarks import clustering_sets
from benchmarks.expression_store import Stored, dense, stored

ROWS, EVERY = 640, 10
SETS = ("extended_yaleb", "mnist", "digits")
ENTRIES, TOLERANCE, TAU, GAMMA, RIDGE = 5, 1e-3, 0.9, 50.0, 0.1
LIMITS = {
    "ssc_omp rows with another support": 1e-3,
    "ssc_omp coefficient": 1e-8,
    "elastic_net objective above": 1e-6,
    "elastic_net violation": 1e-6,
    "elastic_net uncertified": 0,
    "tsc weight": 1e-12,
    "lsr1 coefficient": 1e-9,
    "lsr2 coefficient": 1e-9,
}
"""Largest differences that are allowed."""


def exactness(folder: Path | None, sets: list[str] | None) -> dict[str, Any]:
    """The largest differences of each set that is there."""
    names = [name for name in SETS if not sets or name in sets]
    made = {}
    for name, rows in clustering_sets.found(folder, names):
        made[name] = differences(rows.x[: 600 if name == "mnist" else ROWS])
        for what, limit in LIMITS.items():
            note = "" if made[name][what] <= limit else "  MISSED"
            print(f"{name}: {what} {made[name][what]:.3g}, at most {limit:g}{note}", flush=True)
    return made


def differences(x: np.ndarray) -> dict[str, float]:
    """Between the methods and plain computations, over some rows."""
    z = x.astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as made:
        place = stored(Path(made), x)
        found = of_pursuit(place, z) | of_elastic_net(place, z) | of_cosines(place, z)
        return {"rows": len(x)} | found | of_least_squares(place, z)


def expressed(place: Stored, method: str, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Coefficients of rows by rows of length 1, and the result."""
    preparation = place.stage("preparation", center=False)
    graph = place.stage(method, {"preparation": preparation.id}, **options)
    result = place.made(preparation, graph).result
    return dense(place.arrays(graph)), result


def of_pursuit(place: Stored, z: np.ndarray) -> dict[str, float]:
    """Against the loop."""
    ours, _ = expressed(place, "ssc_omp", entries=ENTRIES, tolerance=TOLERANCE)
    theirs = np.stack([pursued(z, i, ENTRIES, TOLERANCE) for i in range(len(z))])
    same = ((ours != 0) == (theirs != 0)).all(1)
    return {
        "ssc_omp rows with another support": float(1 - same.mean()),
        "ssc_omp coefficient": float(np.abs(ours - theirs)[same].max()),
    }


def pursued(z: np.ndarray, i: int, entries: int, tolerance: float) -> np.ndarray:
    """The coefficients of row i by orthogonal matching pursuit, as published: one row, one step at a time."""
    left, taken = z[i].copy(), [i]
    fitted = np.zeros(0)
    while len(taken) <= entries and np.linalg.norm(left) > tolerance * np.linalg.norm(z[i]):
        size = np.abs(z @ left)
        size[taken] = 0
        taken.append(int(size.argmax()))
        fitted = np.linalg.lstsq(z[taken[1:]].T, z[i], rcond=None)[0]
        left = z[i] - fitted @ z[taken[1:]]
    c = np.zeros(len(z))
    c[taken[1:]] = fitted
    return c


def of_elastic_net(place: Stored, z: np.ndarray) -> dict[str, float]:
    """Objective against that of scikit-learn, relative, and the certificate."""
    ours, told = expressed(place, "elastic_net", tau=TAU, gamma=GAMMA, entries=200)
    above = []
    for i in range(0, len(z), EVERY):
        others = np.delete(z, i, 0)
        weight = GAMMA * TAU / np.abs(others @ z[i]).max()
        solver = ElasticNet(
            alpha=1 / (weight * z.shape[1]), l1_ratio=TAU, fit_intercept=False, tol=1e-12, max_iter=200_000
        )
        theirs = objective(solver.fit(others.T, z[i]).coef_, others, z[i], weight)
        above.append(objective(np.delete(ours[i], i), others, z[i], weight) / theirs - 1)
    return {
        "elastic_net objective above": max(above),
        "elastic_net objective below": -min(above),
        "elastic_net violation": told["largest_violation"],
        "elastic_net uncertified": told["uncertified"],
    }


def objective(c: np.ndarray, others: np.ndarray, row: np.ndarray, weight: float) -> float:
    """What both minimise."""
    rest = row - c @ others
    return float(TAU * np.abs(c).sum() + (1 - TAU) / 2 * (c @ c) + weight / 2 * (rest @ rest))


def of_cosines(place: Stored, z: np.ndarray) -> dict[str, float]:
    """Against all cosines."""
    ours, _ = expressed(place, "tsc", entries=ENTRIES)
    size = np.abs(z @ z.T)
    np.fill_diagonal(size, -1)
    theirs = np.zeros_like(ours)
    for i, order in enumerate(np.argsort(-size, axis=1, kind="stable")[:, :ENTRIES]):
        theirs[i, order] = np.exp(-2 * np.arccos(np.minimum(size[i, order], 1)))
    return {"tsc weight": float(np.abs(ours - theirs).max())}


def of_least_squares(place: Stored, z: np.ndarray) -> dict[str, float]:
    """Against the inverse of rows by rows; all coefficients are kept."""
    gram, entries = z @ z.T, len(z) - 1
    ridge = RIDGE * np.trace(gram) / len(z)
    inverse = np.linalg.inv(gram + ridge * np.eye(len(z)))
    found = {}
    for form, theirs in (("lsr1", -inverse / np.diag(inverse)[:, None]), ("lsr2", inverse @ gram)):
        theirs = theirs - np.diag(np.diag(theirs))
        ours, _ = expressed(place, "lsr", ridge=RIDGE, form=form, entries=entries)
        found[f"{form} coefficient"] = float(np.abs(ours - theirs).max())
    return found

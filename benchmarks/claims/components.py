"""Principal components: offsets, few rows, truncation, small singular values, certificates."""

import importlib
from importlib.metadata import version
from typing import Any

import numpy as np
import sklearn.decomposition as decomposition
import torch

from benchmarks.claims.figure import Figure, Finding
from benchmarks.claims.methods import answer, normal, sine, top, turned
from tasks.methods.spectrum import pca

SKLEARN = f"scikit-learn {version('scikit-learn')}"


def offset(rows: int = 20_000, width: int = 256, k: int = 20) -> list[Figure]:
    """float32 rows far from the origin: scikit-learn loses components, by products of features always and by its other solvers
    where the spectrum is steep; products about a shift, in float64, lose none.

    Means are a thousand standard deviations. Where deviations fall by 0.97 only, `full` and `randomized` keep two or three digits.
    """
    figures = []
    for decay, low, high in ((0.8, 0.9, 1.0), (0.97, 1e-4, 0.1)):
        spread = decay ** np.arange(width)
        means = 1000 * np.sqrt(np.mean(spread**2)) * normal(width, seed=5)
        x = (turned(spread, rows) + means).astype(np.float32)
        values, truth = top(x, k)
        what = f"standard deviations falling by {decay}: sine of the largest angle to LAPACK's components in float64"
        for solver in ("full", "randomized", "covariance_eigh"):
            peer = decomposition.PCA(k, svd_solver=solver, random_state=0).fit(x).components_
            limits = (0.9, 1.0) if solver == "covariance_eigh" else (low, high)
            figures.append(Figure(f"{SKLEARN} PCA {solver}", what, sine(peer, truth), *limits))
        found = answer(pca, torch.from_numpy(x), components=k)
        figures.append(
            Figure("subspan spectrum.pca", what, sine(found.arrays["components"], truth), 0, 1e-11)
        )
        error = np.abs(found.arrays["eigenvalue"][:k].numpy() * (rows - 1) / values**2 - 1).max()
        what = f"standard deviations falling by {decay}: largest relative error of an eigenvalue"
        figures.append(Figure("subspan spectrum.pca", what, float(error), 0, 1e-12))
    return figures


def power_iterations(rows: int = 20_000, width: int = 512, k: int = 32) -> list[Figure]:
    """More power iterations in float32 make a random projection worse, unless vectors are made orthogonal between them.

    dask-ml's TruncatedSVD(algorithm='randomized') calls this function with five power iterations and offers no other iterator.
    """
    da: Any = importlib.import_module("dask.array")
    x = turned(np.arange(1, width + 1) ** -0.75, rows).astype(np.float32)
    values, _ = top(x, k, centre=False)
    lazy, who = da.from_array(x, chunks=(rows // 4, -1)), f"dask {version('dask')} svd_compressed"
    figures = []
    for iterator, steps, low, high in (
        ("power", 2, 0.0, 0.2),
        ("power", 5, 0.5, np.inf),
        ("QR", 5, 0.0, 0.02),
    ):
        _, s, _ = da.linalg.svd_compressed(lazy, k, iterator=iterator, n_power_iter=steps, seed=0)
        error = float(np.abs(np.asarray(s.compute(scheduler="synchronous"), float) / values - 1).max())
        what = f"largest relative error of a singular value, iterator={iterator}, {steps} iterations"
        figures.append(Figure(who, what, error, low, high))
    for refine, high in ((2, 0.1), (5, 0.02)):
        found = answer(
            pca, torch.from_numpy(x), components=k, engine="sketch", rank=k + 10, refine=refine, center=False
        )
        error = float(np.abs(np.sqrt(found.arrays["eigenvalue"][:k].numpy() * rows) / values - 1).max())
        what = f"largest relative error of a singular value, engine sketch, {refine} further passes"
        figures.append(Figure("subspan spectrum.pca", what, error, 0, high))
    return figures


def kept_rank(rows: int = 2000, width: int = 300, k: int = 20) -> list[Figure]:
    """A streaming decomposition that keeps as many directions as are asked for loses the last of them; one that keeps two to four
    times as many, or reads the rows once more, does not.

    Rows come sorted by length.
    """
    x = turned(np.arange(1, width + 1) ** -0.5, rows)
    x = x[np.argsort(np.linalg.norm(x, axis=1))]
    _, truth = top(x, k)
    peer = decomposition.IncrementalPCA(k, batch_size=100).fit(x)
    figures = [
        Figure(
            f"{SKLEARN} IncrementalPCA",
            f"sine to LAPACK, {k} directions kept",
            sine(peer.components_, truth),
            0.5,
        )
    ]
    for rank, refine, high in (
        (k, 0, 1.0),
        (2 * k, 0, 0.5),
        (4 * k, 0, 0.1),
        (2 * k, 1, 0.1),
        (4 * k, 1, 0.02),
    ):
        found = answer(pca, torch.from_numpy(x), components=k, engine="streaming", rank=rank, refine=refine)
        what = f"sine to LAPACK, {rank} directions kept, {refine} further passes"
        figures.append(Figure("subspan spectrum.pca", what, sine(found.arrays["components"], truth), 0, high))
    return figures


def small_singular_values(rows: int = 8000, width: int = 200) -> list[Figure]:
    """A covariance hides singular values below 1e-7 of the largest; a triangular factor does not.

    The rows have known singular values from 1 to 1e-12.
    """
    planted = np.logspace(0, -12, width)
    left = normal(rows, width)
    left = np.linalg.qr(left - left.mean(0))[0]
    x = (left * planted) @ np.linalg.qr(normal(width, width, seed=1))[0]
    small = planted < 1e-7

    def worst(singular: np.ndarray) -> float:
        return float(np.abs(singular[small] / planted[small] - 1).max())

    peer = decomposition.PCA(svd_solver="covariance_eigh").fit(x).singular_values_
    products, triangle = (answer(pca, torch.from_numpy(x), engine=engine) for engine in ("moments", "qr"))
    exact = np.sqrt(triangle.arrays["eigenvalue"].numpy() * (rows - 1))
    n, hidden = int(small.sum()), int(products.arrays["eigenvalue"].isnan().sum())
    what = "largest relative error of singular values below 1e-7"
    return [
        Figure(f"{SKLEARN} PCA covariance_eigh", what, worst(np.nan_to_num(peer)), 1.0),
        Figure("subspan spectrum.pca", f"engine moments: withheld as rounding, of {n} below 1e-7", hidden, 0.9 * n, width),
        Figure("subspan spectrum.pca", f"engine qr: {what}", worst(exact), 0, 1e-3),
    ]  # fmt: skip


def certificates(trials: int = 40) -> list[Figure]:
    """What a truncated stream leaves out can be bounded from the stream itself: never by less than the truth, and hardly by more
    with Frequent Directions.

    No peer gives a bound.
    """
    figures = []
    for shrink, name in ((True, "Frequent Directions"), (False, "truncation")):
        ratios = [_bound_over_error(seed, shrink) for seed in range(trials)]
        what = f"{name}, {trials} trials: bound over true error"
        figures.append(Figure("subspan spectrum.pca", f"{what}, smallest", min(ratios), 1 - 1e-9, np.inf))
        most = 1.05 if shrink else 2.0
        figures.append(
            Figure("subspan spectrum.pca", f"{what}, median", float(np.median(ratios)), 1 - 1e-9, most)
        )
    return figures


def _bound_over_error(seed: int, shrink: bool, rank: int = 20) -> float:
    x = turned(np.arange(1, 121) ** -0.5, 900, seed)
    options = {"components": rank, "engine": "streaming", "rank": rank, "refine": 0, "shrink": shrink}
    found = answer(pca, torch.from_numpy(x), **options)
    basis, values = found.arrays["components"].numpy(), found.arrays["eigenvalue"][:rank].numpy()
    return float(found.result.missed / np.linalg.norm(np.cov(x.T) - (basis.T * values) @ basis, 2))


FINDINGS = tuple(
    Finding(measure) for measure in (offset, power_iterations, kept_rank, small_singular_values, certificates)
)

"""Dimensions and intervals: few rows, dependent rows, duplicates, ranks of random networks, walks."""

import math
import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from benchmarks.claims.components import SKLEARN
from benchmarks.claims.figure import Figure, Finding
from benchmarks.claims.methods import answer, normal
from tasks.methods.geometry import diffusion_entropy, dimension
from tasks.methods.gradients import trajectory
from tasks.methods.spectrum import jackknife, pca, summary
from tasks.numerics import intrinsic_dimension, neighbours


def few_rows(draws: int = 20, width: int = 200) -> list[Figure]:
    """The participation ratio of few rows measures their number; an estimate without bias does not.

    The true value is the number of features.
    """
    figures = []
    for rows, low, high in ((20, 12, 22), (50, 30, 48), (200, 85, 115)):
        found = [answer(summary, torch.from_numpy(normal(rows, width, seed=s))).result for s in range(draws)]
        what = f"participation ratio, {rows} Gaussian rows of {width} alike features, mean of {draws} draws"
        naive = np.mean([f.participation_ratio for f in found])
        figures.append(
            Figure("formula (sum l)^2 / sum l^2", what, float(naive), low * width / 200, high * width / 200)
        )
        unbiased = np.mean([f.participation_ratio_unbiased for f in found])
        figures.append(
            Figure(
                "subspan spectrum.summary",
                f"{what}, without bias",
                float(unbiased),
                0.95 * width,
                1.05 * width,
            )
        )
    heavy = [torch.from_numpy(np.random.default_rng(s).standard_t(5, (50, width))) for s in range(draws)]
    tails = [answer(summary, x).result for x in heavy]
    what = f"participation ratio, 50 rows with t5 tails, mean of {draws} draws"
    naive = float(np.mean([f.participation_ratio for f in tails]))
    figures.append(Figure("formula (sum l)^2 / sum l^2", what, naive, 0, 0.3 * width))
    unbiased = float(np.mean([f.participation_ratio_unbiased for f in tails]))
    return [
        *figures,
        Figure("subspan spectrum.summary", f"{what}, without bias", unbiased, 0.93 * width, 1.07 * width),
    ]


def dependent_rows(trials: int = 100, texts: int = 100, tokens: int = 16) -> list[Figure]:
    """Tokens of a text are not independent: intervals that take them so are too narrow; leaving texts out in groups is right.

    Tokens share 80 % of their variance with their text. No peer gives intervals; the formula is the one that is commonly added.
    """
    spread = np.array([2.0, 1.4, 1.0, 0.7, 0.5, 0.3])
    truth, sample = spread[0] ** 2, torch.arange(texts).repeat_interleave(tokens)
    hits = {pca: 0, jackknife: 0}
    for seed in range(trials):
        shared = np.repeat(normal(texts, 6, seed=seed), tokens, 0) * np.sqrt(0.8)
        x = torch.from_numpy((shared + normal(texts * tokens, 6, seed=9000 + seed) * np.sqrt(0.2)) * spread)
        for module in hits:
            arrays = answer(module, x, sample).arrays
            hits[module] += bool(arrays["eigenvalue_low"][0] <= truth <= arrays["eigenvalue_high"][0])
    what = f"share of {trials} intervals of 95 % that hold the largest eigenvalue, {texts} texts of {tokens} tokens"
    return [
        Figure("formula (Anderson 1963), independent rows", what, hits[pca] / trials, 0, 0.8),
        Figure("subspan spectrum.jackknife, groups of texts", what, hits[jackknife] / trials, 0.88, 1),
    ]


def duplicates(rows: int = 2000, copies: int = 30) -> list[Figure]:
    """Rows that occur more than once leave the two-neighbour dimension without a value, as users of torchgeo-bench have met; counted
    and left out, they do no harm."""
    x = normal(rows, 5) @ normal(5, 40, seed=1)
    x = np.concatenate([x, x[:copies], x[:copies]])
    near = NearestNeighbors(n_neighbors=3).fit(x).kneighbors(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = len(x) / np.log(near[:, 2] / np.maximum(near[:, 1], 0)).sum()
    rows_, index = torch.from_numpy(x), torch.arange(len(x))
    distance = neighbours.nearest(neighbours.none_yet(len(x), 20), rows_, index, rows_, index).distance
    found = _dimension(distance)
    return [
        Figure("formula N / sum ln(r2 / r1)", "is a number (0 no, 1 yes)", float(math.isfinite(plain)), 0, 0),
        Figure(
            "subspan geometry.dimension",
            "rows counted as duplicates",
            found.n_duplicate,
            3 * copies,
            3 * copies,
        ),
        Figure(
            "subspan geometry.dimension", "dimension by two neighbours, of 5", found.twonn.value, 4.4, 5.6
        ),
    ]


def local_dimension(rows: int = 3000) -> list[Figure]:
    """LDReg's published code does not compute the likelihood estimate of its text: k over a sum of k - 1 logarithms, of ratios
    that are shifted by 1e-4."""
    x = torch.from_numpy(normal(rows, 5) @ np.linalg.qr(normal(30, 30, seed=1))[0][:5])
    index = torch.arange(rows)
    distance = neighbours.nearest(neighbours.none_yet(rows, 20), x, index, x, index).distance
    log = np.log(distance[:, :-1].numpy() / distance[:, -1:].numpy())
    likelihood = float(np.exp(np.mean(np.log(-19 / log.sum(1)))))
    found = _dimension(distance)
    over = found.ldreg.value / found.geometric.value
    tight = torch.linspace(1, 1.0001, 20).double()[None]
    negative = float(intrinsic_dimension.local(tight, "ldreg")[0] < 0)
    return [
        Figure("formula (k-1) / S, geometric mean", "dimension of 5, k = 20", likelihood, 4.5, 5.6),
        Figure("subspan geometry.dimension `geometric`", "the same", found.geometric.value, 4.5, 5.6),
        Figure("subspan geometry.dimension `ldreg`, as the code", "over `geometric`, k / (k - 1) = 1.0526 at least", over, 1.05, 1.2),
        Figure("subspan geometry.local_dimension `ldreg`", "below 0 where neighbours are nearly as far (1 yes)", negative, 1, 1),
    ]  # fmt: skip


def walk_of_entropy(rows: int = 400) -> list[Figure]:
    """The package dse-dsmi computes the entropy of another walk than its text describes, and its default bandwidth suits one scale
    of rows only.

    Both walks are this project's own code of the two formulas; the package is not installed here.
    """
    x = torch.from_numpy(normal(rows, 10) * np.where(np.arange(rows) % 4 == 0, 4.0, 1.0)[:, None])
    found = {
        walk: answer(diffusion_entropy, x, walk=walk).result.entropy.value
        for walk in ("package", "documented")
    }
    groups = torch.eye(8).double().repeat_interleave(20, 0) * 1000
    exact = answer(diffusion_entropy, groups, bandwidth=10.0).result.entropy.value
    short = math.log2(rows) - answer(diffusion_entropy, x * 100, bandwidth=10.0).result.entropy.value
    return [
        Figure("subspan geometry.diffusion_entropy `package`", "bits, rows of uneven density", found["package"], 0, math.log2(rows)),
        Figure("subspan geometry.diffusion_entropy `documented`", "bits, the same rows", found["documented"], 0, math.log2(rows)),
        Figure("subspan geometry.diffusion_entropy", "difference of both, bits", abs(found["package"] - found["documented"]), 0.01),
        Figure("subspan geometry.diffusion_entropy", "8 groups of equal rows far apart, log2 8 = 3 bits", exact, 3 - 1e-9, 3 + 1e-9),
        Figure("formula, bandwidth 10 as in dse-dsmi", "rows 100 times as large: bits less than log2 of their number", short, -0.01, 0.01),
    ]  # fmt: skip


def random_walk(steps: int = 500, width: int = 5000) -> list[Figure]:
    """A random walk shows 61, 15 and 7 % of its variance in three components: a trajectory means nothing without that beside it.

    Expected: 6 / (pi k)^2.
    """
    x = normal(steps, width).cumsum(0)
    peer = PCA(3, svd_solver="full").fit(x).explained_variance_ratio_
    found = answer(trajectory, torch.from_numpy(x))
    figures = []
    for k in range(3):
        expected, what = 6 / (math.pi * (k + 1)) ** 2, f"share of component {k + 1}"
        figures.append(Figure(f"{SKLEARN} PCA", what, float(peer[k]), 0.94 * expected, 1.06 * expected))
        null = float(found.arrays["null_share"][k])
        figures.append(
            Figure("subspan gradients.trajectory, null", what, null, 0.98 * expected, 1.02 * expected)
        )
    exceeds = float(found.result.exceeds_null[0])
    return [
        *figures,
        Figure("subspan gradients.trajectory", "component 1 exceeds the null (0 no)", exceeds, 0, 0),
    ]


def rank_of_random_layers(inputs: int = 100, depth: int = 4) -> list[Figure]:
    """The published closed form for the rank of random ReLU layers, m (1 - (1 - 2/pi)^l), does not reproduce: the rank stays m
    and the effective rank falls.

    Gaussian weights, ten times as many units as inputs.
    """
    hidden, figures = torch.from_numpy(normal(inputs, inputs)), []
    for layer in range(1, depth + 1):
        weight = torch.from_numpy(normal(hidden.shape[1], 10 * inputs, seed=layer))
        hidden = (hidden @ weight * math.sqrt(2 / hidden.shape[1])).relu()
        found = answer(summary, hidden, center=False).result
        claimed = inputs * (1 - (1 - 2 / math.pi) ** layer)
        figures += [
            Figure(
                "formula m (1 - (1 - 2/pi)^l)", f"expected rank at depth {layer}", claimed, 0, 0.99 * inputs
            ),
            Figure(
                "subspan spectrum.summary",
                f"numerical rank at depth {layer}",
                found.numerical_rank,
                inputs,
                inputs,
            ),
            Figure(
                "subspan spectrum.summary",
                f"effective rank at depth {layer}",
                found.effective_rank,
                0,
                0.6 * inputs,
            ),
        ]
    return figures


def _dimension(distance: Tensor) -> dimension.Result:
    aligned = {"neighbours": {"distance": distance}}
    x = torch.empty(len(distance), 0)
    found = answer(dimension, x, aligned=aligned, results={"neighbours": {"k": distance.shape[1]}}).result
    assert isinstance(found, dimension.Result)
    return found


FINDINGS = tuple(
    Finding(measure)
    for measure in (
        few_rows,
        dependent_rows,
        random_walk,
        rank_of_random_layers,
        duplicates,
        local_dimension,
        walk_of_entropy,
    )
)

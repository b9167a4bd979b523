"""The intrinsic dimension of each text, from the growth of the minimal spanning trees of its rows (persistent homology).

Rows of a sample are the points of a text. Each text's number comes from sub-samples that are drawn with the seed and the sample's own
index, so that it does not depend on other texts. The pooled dimension is that of rows drawn over all texts. Few points of a high dimension
look like those of a lower one: beside the mean stands what as many points of a Gaussian in all features give.

Arrays: `sample` (measured), samples with a number, over all captures laid end to end; `dimension`, `deviation` (what the choice of
sub-samples gives one rerun) and `rows` (all measured).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import distances, spanning_tree
from tasks.numerics.spanning_tree import Growth, Plan

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {
    "sample": ("measured",),
    "dimension": ("measured",),
    "deviation": ("measured",),
    "rows": ("measured",),
}
REFERENCE = (
    "Tulchinskii, Kuznetsov, Kushnareva, Cherniavskii, Nikolenko, Burnaev, Barannikov, Piontkovskaya, Intrinsic dimension estimation for "
    "robust detection of AI-generated texts, NeurIPS (2023), with the sizes of the authors' code (GPTID); applied in Unveiling intrinsic "
    "dimension of texts (2025). Steele, Annals of Probability 16 (1988) 1767: the growth"
)
SEEDS = (215,)
POOLED, NULL = 1, 2
"""Streams of random numbers, beside that of samples, 0."""
GAUSSIAN_TEXTS = 8


class Config(Frozen):
    """Which texts, and from which sub-samples."""

    samples: int | None = Field(default=None, ge=1)
    """Whole samples to draw; None: all, if they hold no more rows than the most."""
    most_rows: int = Field(default=100_000, ge=2)
    """Refuse more rows than this in memory."""
    least_rows: int = Field(default=80, ge=4)
    """Samples with fewer rows are counted, not measured: their numbers would be noise."""
    longest: int = Field(default=512, ge=4)
    """Rows that are used of a sample, drawn with the seed; time and memory grow with their square. Also of the pooled rows."""
    smallest: int = Field(default=40, ge=2)
    """Points of the smallest sub-sample."""
    intervals: int = Field(default=7, ge=3)
    """Equal steps from the smallest to all points; the last one is not taken."""
    draws: int = Field(default=7, ge=1)
    """Sub-samples for a size, whose median counts."""
    large_draws: int = Field(default=3, ge=1)
    """The same, for sizes of half of the points or more."""
    reruns: int = Field(default=3, ge=2)
    """Times that all is done, with new sub-samples."""
    power: float = Field(default=1.0, gt=0)
    """Of the edges' lengths; must be below the dimension."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the mean's interval."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found; None where texts do not determine a number."""

    n_rows: int
    n_samples: int
    """Samples with rows."""
    n_measured: int
    n_short: int
    """Samples with fewer rows than the least."""
    n_undetermined: int
    """Long enough, but without a growth below that of all dimensions, as where most rows are equal."""
    n_duplicates: int
    """Rows that equal an earlier row of their sample, in samples that are long enough. They are points at distance zero."""
    mean: Interval | None
    """Of the texts' dimensions, with Student's interval over texts."""
    standard_deviation: float | None
    """Of the texts' dimensions."""
    rerun_deviation: float | None
    """Median of the texts' standard deviations over reruns: the noise in a single text's rerun."""
    mean_gaussian: float | None
    """Of a Gaussian in all features, with as many points as the median measured text: what that number of points can show. None where its
    growth cannot be told from that of endless dimensions, so that the texts' dimensions are not limited by their points."""
    gaussian_deviation: float | None
    """Standard deviation of it for one such Gaussian text and one rerun."""
    pooled: float | None
    """Dimension of rows drawn over all samples, whatever their length."""
    pooled_deviation: float | None
    """Standard deviation of one of its reruns."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if a sample of the least rows has less than two sizes of sub-samples.
    """
    for name, n in (("least_rows", config.least_rows), ("longest", config.longest)):
        if len(spanning_tree.steps(config.smallest, n, config.intervals)) < 2:
            raise MethodError(
                f"{name} is {n}, sub-samples begin at {config.smallest} points: found less than two sizes; "
                f"set {name} to {config.smallest + 3} or more, or smallest to less"
            )


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Measure each sample that is long enough, and all rows together.

    Cost: per sample, longest^2 features, and about 100 trees of up to `longest` points.
    """
    sample, counts = torch.unique(block.sample, return_counts=True)
    texts = [
        _text(block["x"][block.sample == s], int(s), config)
        for s in sample[counts >= config.least_rows].tolist()
    ]
    good = [text for text in texts if math.isfinite(text.growth.dimension)]
    typical = int(np.median([text.used for text in good])) if good else None
    slopes, _ = _slopes(block["x"], _stream(config, POOLED), config)
    pooled, gaussian = (
        spanning_tree.growth(slopes, config.power),
        _gaussian(typical, inputs.widths["x"], config),
    )
    found = np.array([text.growth.dimension for text in good])
    result = Result(
        n_rows=len(block),
        n_samples=len(sample),
        n_measured=len(good),
        n_short=int((counts < config.least_rows).sum()),
        n_undetermined=len(texts) - len(good),
        n_duplicates=sum(text.duplicates for text in texts),
        mean=_mean(found, config.confidence),
        standard_deviation=float(found.std(ddof=1)) if len(good) > 1 else None,
        rerun_deviation=float(np.median([text.growth.deviation for text in good])) if good else None,
        mean_gaussian=_known(gaussian.dimension),
        gaussian_deviation=_known(gaussian.deviation),
        pooled=_known(pooled.dimension),
        pooled_deviation=_known(pooled.deviation),
        caveats=_caveats(len(good), len(sample)),
    )
    return result, _arrays(good)


class _Text(NamedTuple):
    sample: int
    rows: int
    used: int
    duplicates: int
    growth: Growth


def _text(x: Tensor, sample: int, config: Config) -> _Text:
    slopes, equal = _slopes(x, _stream(config, 0, sample), config)
    return _Text(
        sample, len(x), min(len(x), config.longest), equal, spanning_tree.growth(slopes, config.power)
    )


def _slopes(x: Tensor, generator: np.random.Generator, config: Config) -> tuple[Tensor, int]:
    """The growth of up to `longest` of some rows, in each rerun, and how many of these rows equal an earlier one."""
    n = min(len(x), config.longest)
    if n < len(x):
        x = x[torch.from_numpy(np.sort(generator.permutation(len(x))[:n])).to(x.device)]
    sizes, distance = spanning_tree.steps(config.smallest, n, config.intervals), distances.pairwise(x)
    plan = Plan(sizes, config.draws, config.large_draws, config.reruns, config.power)
    return spanning_tree.slopes(distance, plan, generator).cpu(), distances.duplicates(distance)


def _gaussian(n: int | None, width: int, config: Config) -> Growth:
    """What n points of all dimensions give, from several such texts: one alone tells little."""
    if n is None:
        return Growth(math.nan, math.nan)
    generator = _stream(config, NULL)
    texts = [torch.from_numpy(generator.standard_normal((n, width))) for _ in range(GAUSSIAN_TEXTS)]
    slopes = torch.cat([_slopes(text, generator, config)[0] for text in texts])
    return spanning_tree.growth(slopes, config.power)


def _stream(config: Config, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, *key])))


def _mean(found: np.ndarray, confidence: float) -> Interval | None:
    if not len(found):
        return None
    value = float(found.mean())
    if len(found) < 2:
        return Interval(value=value, corrected=None, low=None, high=None)
    error = float(found.std(ddof=1)) / math.sqrt(len(found))
    reach = float(student.ppf(0.5 + confidence / 2, len(found) - 1)) * error
    return Interval(value=value, corrected=None, low=value - reach, high=value + reach)


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _caveats(measured: int, samples: int) -> tuple[str, ...]:
    notes = ["numbers of texts of different lengths differ for that alone; compare texts of like length"]
    if measured < samples:
        notes.append(f"{measured} of {samples} samples could be measured")
    notes.append("the pooled dimension has no interval over texts")
    return tuple(notes)


def _arrays(good: list[_Text]) -> Arrays:
    values = {
        "sample": torch.tensor([text.sample for text in good], dtype=torch.int64),
        "dimension": torch.tensor([text.growth.dimension for text in good], dtype=torch.float64),
        "deviation": torch.tensor([text.growth.deviation for text in good], dtype=torch.float64),
        "rows": torch.tensor([text.rows for text in good], dtype=torch.int64),
    }
    return {name: Array(column, ARRAYS[name]) for name, column in values.items()}

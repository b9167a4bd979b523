"""Whether networks whose representation has more dimensions, or compresses more, are also more accurate.

Connect `spectrum.summary` and `probe.linear` at the same sites of several networks: each capture is one point. Its dimension is the
participation ratio (without bias where that is known) at its last site, its compression the ratio of those at its first and last, its
accuracy the best of its probes, or R^2. Correlations stand beside what chance gives, by permutations of the networks. Arrays, one number
per point: `dimension`, `compression` (NaN for a capture of one site), `accuracy`, `width`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.stats import PermutationMethod, norm, pearsonr, spearmanr
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs, Member

VERSION = 1
KIND = "combine"
READS = {
    "summaries": ArtifactPort("spectrum.summary", several=True),
    "probes": ArtifactPort("probe.linear", several=True),
}
ARRAYS = dict.fromkeys(("dimension", "compression", "accuracy", "width"), ("point",))
REFERENCE = (
    "On the relationship between representation geometry and generalization in deep neural networks (2026), from its abstract: effective "
    "dimension taken as the participation ratio, total compression as first over last (reconstructed)"
)
SEEDS = (198,)
FEWEST = 4


class Config(Frozen):
    """How sure, and by how many permutations."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals of correlations (Fisher's transformation)."""
    permutations: int = Field(default=9999, ge=99)
    """Of the networks, for the chance of a correlation as large; all of them where there are fewer."""
    seed: int = 0
    """Of the permutations."""


class Correlation(Frozen):
    """Of the logarithm of a measure with accuracy."""

    pearson: float
    low: float | None
    """None for four networks or less."""
    high: float | None
    chance: float
    """Share of permutations with as large a correlation, of either sign."""
    spearman: float
    partial: float | None
    """With the logarithm of the width taken out of both; None where widths are equal."""
    points: int


class Result(Frozen):
    """Correlations; None for less than four networks with a number, or where one side does not vary."""

    n_networks: int
    networks: tuple[str, ...]
    """Captures, in the order of the arrays."""
    dimension: Correlation | None
    compression: Correlation | None
    caveats: tuple[str, ...]


class _Point(NamedTuple):
    capture: str
    dimension: float
    compression: float
    accuracy: float
    width: float


def check(inputs: Inputs, config: Config) -> None:
    """Refuse what cannot be compared.

    Raises:
        MethodError: if no capture has both a spectrum and a probe.
    """
    if not _points(inputs):
        raise MethodError(
            "no capture has both an artifact of spectrum.summary and one of probe.linear; connect stages over the same captures"
        )


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A point for each capture, and two correlations."""
    points = _points(inputs)
    table = {name: torch.tensor([getattr(p, name) for p in points], dtype=torch.float64) for name in ARRAYS}
    result = Result(
        n_networks=len(points),
        networks=tuple(p.capture for p in points),
        dimension=_correlation(table, "dimension", config),
        compression=_correlation(table, "compression", config),
        caveats=_caveats(len(points), inputs),
    )
    return result, {name: Array(values, ARRAYS[name]) for name, values in table.items()}


def _points(inputs: Inputs) -> list[_Point]:
    spectra, probes = (_by_capture(inputs.series[port]) for port in ("summaries", "probes"))
    found = []
    for capture, members in spectra.items():
        dims = [d for m in members if (d := _dimension(m)) is not None]
        accuracies = [a for m in probes.get(capture, []) if (a := _accuracy(m)) is not None]
        if dims and accuracies:
            ratio = dims[0] / dims[-1] if len(dims) > 1 else math.nan
            found.append(
                _Point(capture, dims[-1], ratio, max(accuracies), float(members[-1].result["width"]))
            )
    return found


def _by_capture(members: tuple[Member, ...]) -> dict[str, list[Member]]:
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(" + ".join(member.captures), []).append(member)
    return groups


def _dimension(member: Member) -> float | None:
    found = member.result["participation_ratio_unbiased"] or member.result["participation_ratio"]
    return None if found is None else float(found)


def _accuracy(member: Member) -> float | None:
    found = member.result["r2"] if member.result["accuracy"] is None else member.result["accuracy"]
    return None if found is None else float(found)


def _correlation(table: dict[str, Tensor], name: str, config: Config) -> Correlation | None:
    there = table[name].isfinite()
    x, y, width = (table[key][there].numpy() for key in (name, "accuracy", "width"))
    x, width = np.log(x), np.log(width)
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    draws = PermutationMethod(n_resamples=config.permutations, rng=np.random.default_rng(config.seed))
    found = pearsonr(x, y, method=draws)
    low, high = _fisher(float(found.statistic), len(x), config.confidence)
    return Correlation(
        pearson=float(found.statistic),
        low=low,
        high=high,
        chance=float(found.pvalue),
        spearman=float(spearmanr(x, y).statistic),
        partial=_partial(x, y, width),
        points=len(x),
    )


def _fisher(r: float, n: int, confidence: float) -> tuple[float | None, float | None]:
    if n <= FEWEST or abs(r) >= 1:
        return None, None
    reach = float(norm.ppf(0.5 + confidence / 2)) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def _partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float | None:
    if np.ptp(given) == 0 or len(x) <= FEWEST:
        return None
    design = np.stack([np.ones_like(given), given], 1)
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    sizes = [float(np.linalg.norm(v)) for v in left]
    whole = [float(np.linalg.norm(v - v.mean())) for v in (x, y)]
    if any(size <= 1e-12 * total for size, total in zip(sizes, whole, strict=True)):
        return None
    return float(left[0] @ left[1] / (sizes[0] * sizes[1]))


def _caveats(n: int, inputs: Inputs) -> tuple[str, ...]:
    notes = ["networks of one family are not independent; a correlation is no cause"]
    if n < FEWEST:
        notes.append(f"{n} networks, a correlation takes {FEWEST}: connect more captures")
    spectra, probes = (_by_capture(inputs.series[port]) for port in ("summaries", "probes"))
    alone = set(spectra) ^ set(probes)
    if alone:
        notes.append(f"{len(alone)} captures have a spectrum or a probe alone, and are left out")
    return tuple(notes)

"""How far a site's rows are a sum of one part for each concept, and whether parts of different concepts are orthogonal.

Concepts are labels with classes; a part is the mean of a value's rows, about the mean of all. Shares of variance stand beside what the same
labels explain when they are dealt to samples at random, cosines beside those of random directions. Array: `cosine` (concept,
other_concept), mean absolute cosines of their parts, in the order of the result's concepts; of different parts of one concept on the
diagonal.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.classes import class_label
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import factorisation

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"cosine": ("concept", "other_concept")}
REFERENCE = (
    "Uselis, Dittadi, Oh, Compositional generalization requires linear, orthogonal representations in vision embedding models (2026), with "
    "the measures of the authors' code that need no probe"
)
SEEDS = (124,)
SHARE = 0.95
"""Of the squares of parts, that a concept's rank holds."""


class Config(Frozen):
    """Which labels are concepts, and which rows."""

    labels: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Labels with classes; None: all of them."""
    deals: int = Field(default=5, ge=1)
    """Deals of all labels together to samples at random, for what chance gives."""
    halves: int = Field(default=12, ge=4)
    """Draws of half of the samples, for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    sample_rows: int | None = Field(default=10_000, ge=4)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=50_000, ge=4)
    """Refuse more rows than this in memory."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Concept(Frozen):
    """One label."""

    label: str
    values: int
    """With rows."""
    share: float
    """Of the variance, that the means of its values explain alone."""
    rank: int
    """Directions that hold 95 % of the squares of its parts; at most values - 1 if values are equally frequent."""
    cosine: float | None
    """Mean absolute cosine of its different parts; 1 for two values."""


class Result(Frozen):
    """What was found. None where the rows do not determine a number."""

    n_rows: int
    n_unlabelled: int
    """Rows that lack a concept, which are left out."""
    n_combinations: int
    """Of values, that occur."""
    n_possible: int
    """Of values, in all: combinations that do not occur are what a network must generalise to."""
    concepts: tuple[Concept, ...]
    marginal: Interval | None
    """Share of the variance that the sum of the concepts' means explains: the published measure, right where concepts are independent."""
    marginal_chance: float | None
    """The same with labels dealt at random."""
    marginal_whitened: Interval | None
    """The same with every direction scaled to variance 1."""
    marginal_whitened_chance: float | None
    additive: Interval | None
    """By the best sum of parts, also where concepts go together."""
    cells: Interval | None
    """By the means of combinations: the most that concepts explain."""
    linear: Interval | None
    """Additive share over that of combinations, both adjusted for chance as 1 - (1 - share) / (1 - chance): 1 where rows are a sum of
    parts, but for what concepts do not explain. None where combinations explain no more than chance."""
    cosine_across: Interval | None
    """Mean absolute cosine of parts of different concepts; 0 for orthogonal ones."""
    cosine_random: float
    """Of random directions."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there is no label with classes, or a named one has none.
    """
    _labels(inputs, config)


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Parts, what they explain, and their cosines.

    Raises:
        MethodError: for less than four rows with all concepts.

    Cost: (1 + deals + halves) (row feature^2 + feature^3).
    """
    labels = _labels(inputs, config)
    codes = torch.stack([block.labels[label] for label in labels], dim=1)
    known = torch.nonzero((codes >= 0).all(1)).flatten()
    if len(known) < 4:
        raise MethodError(
            f"found {len(known)} good rows with all of the labels {', '.join(labels)}; expected 4 or more, name fewer in `labels`"
        )
    x, codes, sample = block["x"][known].double(), codes[known], block.sample[known]
    whole = _measured(x, codes)
    chance = [_measured(x, dealt) for dealt in _deals(codes, sample, config)]
    chance_mean = {name: float(np.mean([c[name] for c in chance])) for name in whole}
    parts = [
        _measured(x[rows], codes[rows]) for rows in half_samples.draw(sample, config.halves, config.seed)
    ]

    def interval(name: str) -> Interval | None:
        return half_samples.interval(whole[name], [part[name] for part in parts], config.confidence)

    linear = [_linear(found, chance_mean) for found in (whole, *parts)]
    concepts, cosines = _concepts(x, codes, labels)
    sizes = [concept.values for concept in concepts]
    n_cells = len(torch.unique(codes, dim=0))
    result = Result(
        n_rows=len(block),
        n_unlabelled=len(block) - len(known),
        n_combinations=n_cells,
        n_possible=math.prod(sizes),
        concepts=concepts,
        marginal=interval("marginal"),
        marginal_chance=_known(chance_mean["marginal"]),
        marginal_whitened=interval("marginal_whitened"),
        marginal_whitened_chance=_known(chance_mean["marginal_whitened"]),
        additive=interval("additive"),
        cells=interval("cells"),
        linear=half_samples.interval(linear[0], linear[1:], config.confidence),
        cosine_across=interval("cosine_across"),
        cosine_random=_random_cosine(x.shape[1]),
        caveats=half_samples.caveats(sample) + _caveats(sizes, n_cells, whole),
    )
    return result, {"cosine": Array(cosines, ARRAYS["cosine"])}


def _labels(inputs: Inputs, config: Config) -> tuple[str, ...]:
    if config.labels is None:
        return tuple(sorted(inputs.categories)) or (class_label(inputs, None),)
    return tuple(class_label(inputs, label) for label in config.labels)


def _measured(x: Tensor, codes: Tensor) -> dict[str, float]:
    centred = x - x.mean(0)
    means = [factorisation.value_means(centred, column) for column in codes.T]
    across = [factorisation.cosine(a, b, same=False) for k, a in enumerate(means) for b in means[k + 1 :]]
    return factorisation.explained(x, codes)._asdict() | {
        "cosine_across": float(np.mean(across)) if across else math.nan
    }


def _deals(codes: Tensor, sample: Tensor, config: Config) -> list[Tensor]:
    """Labels dealt to samples at random, all of a sample together."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 3])))
    there, place = torch.unique(sample, return_inverse=True)
    own = codes.new_zeros(len(there), codes.shape[1])
    own[place] = codes  # every row of a sample has its labels
    orders = [torch.from_numpy(generator.permutation(len(own))).to(own.device) for _ in range(config.deals)]
    return [own[order][place] for order in orders]


def _linear(found: dict[str, float], chance: dict[str, float]) -> float:
    additive, cells = (
        1 - (1 - found[name]) / (1 - chance[name]) if chance[name] < 1 - 1e-9 else math.nan
        for name in ("additive", "cells")
    )
    return additive / cells if cells > 1e-9 else math.nan


def _concepts(x: Tensor, codes: Tensor, labels: Sequence[str]) -> tuple[tuple[Concept, ...], Tensor]:
    x = x - x.mean(0)
    total = float(x.square().sum())
    means = [factorisation.value_means(x, column) for column in codes.T]
    counts = [torch.unique(column, return_counts=True)[1] for column in codes.T]
    cosines = [
        [factorisation.cosine(a, b, same=j == k) for j, b in enumerate(means)] for k, a in enumerate(means)
    ]
    concepts = tuple(
        Concept(
            label=label,
            values=len(m),
            share=float((m.square().sum(1) * n).sum()) / total if total > 0 else 0.0,
            rank=factorisation.rank(m, SHARE),
            cosine=_known(cosines[k][k]),
        )
        for k, (label, m, n) in enumerate(zip(labels, means, counts, strict=True))
    )
    return concepts, torch.tensor(cosines, dtype=torch.float64)


def _random_cosine(width: int) -> float:
    """Mean absolute cosine of two random directions."""
    return math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _caveats(sizes: list[int], cells: int, whole: dict[str, float]) -> tuple[str, ...]:
    notes = []
    if len(sizes) == 1:
        notes.append("one concept: there is nothing to add, and every share is the same")
    if min(sizes) == 1:
        notes.append("a concept with one value explains nothing")
    if cells < math.prod(sizes):
        notes.append(f"{cells} of {math.prod(sizes)} combinations occur: shares of combinations are of these")
    if whole["additive"] - whole["marginal"] > 0.02:
        notes.append("concepts go together in these samples: read `additive`, not `marginal`")
    return tuple(notes)

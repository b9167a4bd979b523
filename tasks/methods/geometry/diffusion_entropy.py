"""How many directions a random walk over a site's rows tells apart: diffusion spectral entropy, and what it shares with a label.

The entropy is that of the eigenvalues of a walk with Gaussian steps between rows, in bits: m groups of rows that the walk does not leave
give log2 m. It cannot exceed log2 of the rows, so compare sites at equal numbers of rows. The default walk is the one that the authors'
package computes; their text describes another, which is the option `documented`. Array: `share` (order), of the eigenvalues after so many
steps, descending.
"""

import math
from typing import Literal, NamedTuple

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
from tasks.numerics import diffusion, distances
from tasks.numerics.diffusion import Walk

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {"share": ("order",)}
REFERENCE = (
    "Liao, Liu, Christensen, Tong, Huguet, Wolf, Nickel, Adelstein, Krishnaswamy, Assessing neural network representations during training "
    "using noise-resilient diffusion spectral entropy (2023), with the operator of the package dse-dsmi 1.1"
)
SEEDS = (224,)


class Config(Frozen):
    """The walk, and which rows it goes over."""

    bandwidth: Literal["auto"] | float = Field(default="auto")
    """Standard deviation of a step. `auto`: the median distance of rows, so that sites of any scale can be compared. The package's is
    10, which is right for rows about 10 apart only: with rows that are much further apart the entropy is log2 of their number."""
    walk: Walk = "package"
    """`package`: the walk on rows as they lie, which dse-dsmi computes. `documented`: that of its text, which divides by densities once
    more."""
    time: int = Field(default=1, ge=1)
    """Steps of the walk: more make small eigenvalues, as noise has, count less."""
    label: str | None = None
    """A label with classes to share information with; None: none."""
    repetitions: int = Field(default=5, ge=1)
    """Deals of the label to samples at random, for what chance gives."""
    halves: int = Field(default=12, ge=4)
    """Draws of half of the samples, for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    sample_rows: int | None = Field(default=2000, ge=2)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=10_000, ge=2)
    """Refuse more rows than this: time grows with their cube, memory with 24 bytes times their square."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found. None where no label is asked for."""

    n_rows: int
    n_duplicates: int
    """Rows that equal an earlier one."""
    bandwidth: float
    median_distance: float | None
    """Of pairs of rows that differ; None where none does."""
    entropy: Interval | None
    """Bits. The interval is about this number of rows: fewer rows have less entropy."""
    entropy_most: float
    """log2 of the rows."""
    entropy_gaussian: float
    """Of as many rows of a Gaussian that is alike in all features, with the same mean square distance."""
    label: str | None
    n_classes: int | None
    """With rows."""
    n_unlabelled: int | None
    """Rows without the label, which the information leaves out."""
    information: Interval | None
    """Entropy less the mean entropy of the classes' rows, weighted by rows. Above 0 for any label, since classes have fewer rows."""
    information_chance: float | None
    """The same with the label dealt to samples at random."""
    information_matched: Interval | None
    """Information less that of chance: entropy of as many rows at random less that of a class, as the package computes."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for a bandwidth that is not above 0, less than two rows, or a label without classes.
    """
    if config.bandwidth != "auto" and not 0 < config.bandwidth < math.inf:
        raise MethodError(f"bandwidth is {config.bandwidth}, expected a number above 0 or `auto`")
    if inputs.n_rows < 2:
        raise MethodError(f"found {inputs.n_rows} rows, expected 2 or more; capture more samples")
    if config.label is not None:
        class_label(inputs, config.label)


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The entropy of all rows, of a Gaussian, of halves, and of classes.

    Raises:
        MethodError: for less than two good rows.

    Cost: about 4 row^3, and with a label the cubes of the classes' rows for each repetition and half.
    """
    if len(block) < 2:
        raise MethodError(f"found {len(block)} good rows, expected 2 or more; capture more samples")
    distance = distances.pairwise(block["x"])
    middle = distances.median(distance)
    walk = _Steps(_bandwidth(config, middle), config.walk, config.time)
    values = diffusion.spectrum(distance, walk.bandwidth, walk.walk).pow(config.time)
    halves = half_samples.draw(block.sample, config.halves, config.seed)
    parts = [_entropy(distances.part(distance, rows), walk) for rows in halves]
    whole, gaussian = diffusion.entropy(values, 1), _gaussian(distance, inputs.widths["x"], walk, config.seed)
    shared = _no_label() if config.label is None else _shared(block, distance, walk, config)
    result = Result(
        n_rows=len(block),
        n_duplicates=distances.duplicates(distance),
        bandwidth=walk.bandwidth,
        median_distance=middle if math.isfinite(middle) else None,
        entropy=half_samples.interval(whole, parts, config.confidence),
        entropy_most=math.log2(len(block)),
        entropy_gaussian=gaussian,
        label=config.label,
        n_classes=shared.classes,
        n_unlabelled=shared.unlabelled,
        information=shared.information,
        information_chance=shared.chance,
        information_matched=shared.matched,
        caveats=half_samples.caveats(block.sample) + _caveats(whole, len(block)) + shared.caveats,
    )
    return result, {"share": Array(values / values.sum(), ARRAYS["share"])}


class _Steps(NamedTuple):
    bandwidth: float
    walk: Walk
    time: int


def _bandwidth(config: Config, middle: float) -> float:
    if config.bandwidth != "auto":
        return config.bandwidth
    return middle if math.isfinite(middle) else 1.0  # all rows are equal: any step is one


def _entropy(distance: Tensor, walk: _Steps) -> float:
    return diffusion.entropy(diffusion.spectrum(distance, walk.bandwidth, walk.walk), walk.time)


def _gaussian(distance: Tensor, width: int, walk: _Steps, seed: int) -> float:
    """Of rows of a Gaussian with the same mean square distance."""
    n = len(distance)
    rows = torch.from_numpy(_stream(seed, 2).standard_normal((n, width))).to(distance.device)
    scale = distances.root_mean_square(distance) / math.sqrt(2 * width)
    return _entropy(distances.pairwise(rows * scale), walk)


class _Shared(NamedTuple):
    """With a label."""

    classes: int | None
    unlabelled: int | None
    information: Interval | None
    chance: float | None
    matched: Interval | None
    caveats: tuple[str, ...]


def _no_label() -> _Shared:
    return _Shared(None, None, None, None, None, ())


def _shared(block: Block, distance: Tensor, walk: _Steps, config: Config) -> _Shared:
    """Information of all labelled rows, and of each half of their samples."""
    codes = block.labels[str(config.label)]
    known = torch.nonzero(codes >= 0).flatten()
    codes, sample, distance = codes[known], block.sample[known], distances.part(distance, known)
    if not len(known):
        return _no_label()._replace(unlabelled=len(block), caveats=("no row has the label",))
    generator = _stream(config.seed, 3)
    whole = _information(distance, codes, sample, walk, generator, config.repetitions)
    parts = [
        _information(distances.part(distance, rows), codes[rows], sample[rows], walk, generator, 1)
        for rows in half_samples.draw(sample, config.halves, config.seed)
    ]
    sizes = torch.unique(codes, return_counts=True)[1]
    notes = [] if len(sizes) > 1 else ["all rows are of one class: there is nothing to share"]
    if int(sizes.min()) < 10:
        notes.append(f"the smallest class has {int(sizes.min())} rows, whose entropy tells nothing")
    return _Shared(
        len(sizes),
        len(block) - len(known),
        half_samples.interval(whole[0], [part[0] for part in parts], config.confidence),
        whole[1],
        half_samples.interval(whole[0] - whole[1], [part[0] - part[1] for part in parts], config.confidence),
        tuple(notes),
    )


def _information(
    distance: Tensor, codes: Tensor, sample: Tensor, walk: _Steps, generator: np.random.Generator, deals: int
) -> tuple[float, float]:
    """With the label, and its mean with the label dealt to samples at random."""
    total = _entropy(distance, walk)
    there, place = torch.unique(sample, return_inverse=True)
    own = torch.zeros_like(there).scatter_(0, place, codes)  # every row of a sample has its label
    dealt = [
        own[torch.from_numpy(generator.permutation(len(own))).to(own.device)][place] for _ in range(deals)
    ]
    found, *chance = (total - _within(distance, labels, walk) for labels in [codes, *dealt])
    return found, sum(chance) / deals


def _within(distance: Tensor, codes: Tensor, walk: _Steps) -> float:
    """Mean entropy of the rows of a class, weighted by rows."""
    rows = [torch.nonzero(codes == code).flatten() for code in torch.unique(codes)]
    return sum(len(r) * _entropy(distances.part(distance, r), walk) for r in rows) / len(codes)


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))


def _caveats(entropy: float, n: int) -> tuple[str, ...]:
    notes = ["entropy grows with rows: compare sites at equal numbers of rows"]
    if entropy > math.log2(n) - 0.05:
        notes.append(
            "steps hardly reach other rows; the entropy is that of the number of rows: raise `bandwidth`"
        )
    elif entropy < 0.05:
        notes.append("steps reach all rows alike: lower `bandwidth`, unless rows are equal")
    return tuple(notes)

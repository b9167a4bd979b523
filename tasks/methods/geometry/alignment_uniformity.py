"""How near rows that belong together lie on the hypersphere (alignment), and how evenly all rows fill it (uniformity).

Rows are scaled to length 1. Rows belong together that come from one sample, or, of different samples, that have one class of a label. How
rows are spread is told by pairs of different samples, as rows of one sample depend on each other. All such pairs of the rows in memory are
measured; intervals come from halves of the samples, and beside stands what uniform directions would give. Lower is better in both. No
arrays.
"""

import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import half_samples
from tasks.methods.classes import carried, codes_of, row_class_label
from tasks.methods.contract import Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import distances, hypersphere

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(labels=True, tokens=True)}
ARRAYS: dict[str, tuple[str, ...]] = {}
REFERENCE = (
    "Wang, Isola, Understanding contrastive representation learning through alignment and uniformity on the hypersphere, ICML (2020). "
    "Wang et al., Towards representation alignment and uniformity in collaborative filtering, KDD (2022), with pairs of one class in the "
    "place of a user and an item. Uniform directions: the beta law of distances, and 0F1"
)
SEEDS = (137,)


class Config(Frozen):
    """Which rows, which pairs, and how distances count."""

    label: str | None = None
    """Rows of different samples with the same class of this label belong together: a label of the samples, or `token` or `next_token` of
    the rows. None: rows of one sample."""
    power: float = Field(default=2.0, gt=0)
    """Of the distance, in alignment."""
    t: float = Field(default=2.0, gt=0)
    """Of uniformity: how fast a pair counts less with its squared distance."""
    halves: int = Field(default=20, ge=4)
    """Draws of half of the samples, for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    samples: int | None = Field(default=None, ge=2)
    """Whole samples to draw, which keeps all their pairs; None: rows are drawn."""
    sample_rows: int | None = Field(default=4000, ge=2)
    """Rows to draw where samples are not; None: all, if there are no more than the most."""
    most_rows: int = Field(default=12000, ge=2)
    """Refuse more rows than this; memory grows with their square, 16 bytes a pair."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""


class Result(Frozen):
    """What was found. None where rows do not determine a number."""

    label: str | None
    """None: pairs of one sample."""
    n_rows: int
    n_zero: int
    """Rows of length zero, which have no direction and are left out."""
    n_alone: int
    """Rows that no other belongs to, such as those without a class; they count in uniformity alone."""
    n_equal: int
    """Directions that equal an earlier one; their pairs are at distance 0."""
    n_pairs: int
    """That belong together."""
    width: int
    """Features."""
    alignment: Interval | None
    """Mean of distance^power over pairs that belong together: 0 if they are one direction each."""
    alignment_groups: Interval | None
    """The same, with every class (or sample) counted alike, whatever its rows."""
    alignment_share: Interval | None
    """Alignment over the mean of pairs of different samples: 1 if belonging together says nothing."""
    distance: Interval | None
    """Mean of distance^power over pairs of different samples."""
    distance_uniform: float
    """Of uniform directions: 2 for the square."""
    uniformity: Interval | None
    """ln of the mean of exp(-t distance^2) over pairs of different samples: 0 for one direction."""
    uniformity_uniform: float
    """Of uniform directions: none is lower, with endless rows."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for a label that names no classes, or less than two rows.
    """
    if config.label is not None:
        row_class_label(inputs, config.label)
    if inputs.n_rows < 2:
        raise MethodError(f"found {inputs.n_rows} rows, expected 2 or more; capture more samples")


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All means over pairs, of all rows and of each half.

    Raises:
        MethodError: without two rows that have a direction.

    Cost: 2 row^2 feature + 10 row^2 halves flops, and 16 row^2 bytes.
    """
    z, kept = distances.directions(block["x"])
    if len(z) < 2:
        raise MethodError(
            f"{len(z)} of {len(block)} rows have a direction, pairs take two; the others are zero"
        )
    sample = block.sample[kept]
    code = None if config.label is None else codes_of(block, carried(config.label))[kept]
    distance = distances.pairwise(z)
    halves = half_samples.draw(sample, config.halves, config.seed)
    part = torch.zeros(len(z), 1 + len(halves), dtype=torch.float64, device=z.device)
    part[:, 0] = 1
    for k, rows in enumerate(halves):
        part[rows, 1 + k] = 1
    found = hypersphere.over_pairs(distance, sample, code, part, config.power, config.t)
    values = {**found._asdict(), "alignment_share": found.alignment / found.distance}
    names = ("alignment", "alignment_groups", "alignment_share", "distance", "uniformity")
    result = Result.model_validate(
        {name: _interval(values[name].tolist(), config) for name in names}
        | {
            "label": config.label,
            "n_rows": len(block),
            "n_zero": len(block) - len(z),
            "n_alone": found.n_alone,
            "n_equal": distances.duplicates(distance),
            "n_pairs": round(float(found.n_positive[0])),
            "width": inputs.widths["x"],
            "distance_uniform": hypersphere.distance_of_uniform(inputs.widths["x"], config.power),
            "uniformity_uniform": hypersphere.uniformity_of_uniform(inputs.widths["x"], config.t),
            "caveats": half_samples.caveats(sample) + _caveats(found.n_alone, len(z), config),
        }
    )
    return result, {}


def _interval(values: list[float], config: Config) -> Interval | None:
    return half_samples.interval(values[0], values[1:], config.confidence)


def _caveats(alone: int, n: int, config: Config) -> tuple[str, ...]:
    if alone == n:
        return (
            "no two rows belong together: alignment is not known; name a `label`, or draw whole `samples`",
        )
    if config.label is None and config.samples is None and alone > n / 2:
        return (f"{alone} of {n} rows are drawn without another of their sample: set `samples`",)
    return ()

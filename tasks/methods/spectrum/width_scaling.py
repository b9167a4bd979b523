"""How hard and soft rank grow with width: power laws over the spectra of several networks.

Connect `spectrum.summary` at the same kind of site of networks of at least three widths, such as the hidden layers of their feed-forward
blocks. Sites of one capture are not independent of each other: those of one width become one point, the mean of their logarithms. Beside
each exponent stands that of as many rows of white noise: 1, or less where the wide have few rows. Arrays, one number per point: `width`,
and each measure, NaN where a site has none.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods.contract import Array, Arrays, ArtifactPort, Inputs, Member
from tasks.numerics import power_law, white_noise

VERSION = 1
KIND = "combine"
READS = {"summaries": ArtifactPort("spectrum.summary", several=True)}
MEASURES = ("participation_ratio", "participation_ratio_unbiased", "effective_rank", "utilisation")
ARRAYS = dict.fromkeys(("width", *MEASURES), ("point",))
REFERENCE = (
    "Spectral scaling laws in language models: how effectively do feed-forward networks use their latent space? (2025): hard rank "
    "(participation ratio), soft rank (effective rank) and utilisation over width"
)
SEEDS = (16,)
FEWEST = 3
FEW = 10


class Config(Frozen):
    """How sure."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals, by Student's t."""


class Law(Frozen):
    """measure = factor width^exponent."""

    exponent: float
    low: float
    high: float
    factor: float
    r_squared: float | None
    """Of the logarithms; None where the measure does not vary."""
    exponent_null: float | None
    """Of white noise with as many rows; None for the utilisation, whose noise has none."""
    points: int


class Result(Frozen):
    """Laws; None for less than three widths with a number."""

    n_artifacts: int
    n_points: int
    """Captures by width."""
    n_widths: int
    """Different ones."""
    width_min: int
    width_max: int
    participation_ratio: Law | None
    """Hard rank, of the sample: biased down where rows are few."""
    participation_ratio_unbiased: Law | None
    """Hard rank, estimated without bias."""
    effective_rank: Law | None
    """Soft rank."""
    utilisation: Law | None
    """The harmonic mean of both over the width: exponents of the ranks less 1, roughly."""
    caveats: tuple[str, ...]


def solve(inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Points, and a law for each measure."""
    members = inputs.series["summaries"]
    groups: dict[tuple[tuple[str, ...], int], list[Member]] = {}
    for member in members:
        groups.setdefault((member.captures, int(member.result["width"])), []).append(member)
    widths = torch.tensor([width for _, width in groups], dtype=torch.float64)
    points = {name: _means(list(groups.values()), name) for name in MEASURES}
    result = Result(
        n_artifacts=len(members),
        n_points=len(groups),
        n_widths=len(set(widths.tolist())),
        width_min=int(widths.min()),
        width_max=int(widths.max()),
        **{name: _law(name, widths, points[name], list(groups.values()), config) for name in MEASURES},
        caveats=_caveats(members, widths),
    )
    return result, {
        name: Array(values, ARRAYS[name]) for name, values in ({"width": widths} | points).items()
    }


def _means(groups: list[list[Member]], name: str) -> Tensor:
    """Geometric means of the sites of each point that have a number."""
    found = []
    for group in groups:
        known = [math.log(m.result[name]) for m in group if m.result[name] is not None and m.result[name] > 0]
        found.append(math.exp(sum(known) / len(known)) if known else math.nan)
    return torch.tensor(found, dtype=torch.float64)


def _law(name: str, widths: Tensor, values: Tensor, groups: list[list[Member]], config: Config) -> Law | None:
    there = values.isfinite()
    x, y = widths[there], values[there]
    if len(set(x.tolist())) < FEWEST:
        return None
    found = power_law.fit(x, y, config.confidence)
    null: float | None = None
    if name != "utilisation":
        kept = [group for group, good in zip(groups, there.tolist(), strict=True) if good]
        noise = torch.tensor([_noise(name, group) for group in kept], dtype=torch.float64)
        null = power_law.fit(x, noise, config.confidence).exponent
    r_squared = found.r_squared if math.isfinite(found.r_squared) else None
    return Law(
        exponent=found.exponent,
        low=found.low,
        high=found.high,
        factor=found.factor,
        r_squared=r_squared,
        exponent_null=null,
        points=len(x),
    )


def _noise(name: str, group: list[Member]) -> float:
    """The measure of white noise, with the mean number of rows of the point's sites."""
    width = int(group[0].result["width"])
    rows = sum(float(member.result["n_eff"]) for member in group) / len(group)
    ratio = width / max(1.0, rows - 1)
    if name == "participation_ratio":
        return width / (1 + ratio)
    if name == "effective_rank":
        return width * math.exp(-white_noise.mean_of(lambda x: torch.special.xlogy(x, x), ratio))
    return float(width)


def _caveats(members: tuple[Member, ...], widths: Tensor) -> tuple[str, ...]:
    notes = []
    if len(set(widths.tolist())) < FEWEST:
        notes.append(
            f"{len(set(widths.tolist()))} different widths, a law takes {FEWEST}: connect networks of other widths"
        )
    few = sum(m.result["n_eff"] < FEW * m.result["width"] for m in members)
    if few:
        notes.append(
            f"{few} of {len(members)} artifacts have less than {FEW} rows per feature: ranks are biased down, the more the wider, and so "
            "are exponents; compare with those of noise"
        )
    notes.append(
        "intervals take captures as independent and the law as right; networks of one family share more than width"
    )
    return tuple(notes)

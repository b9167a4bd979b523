"""Whether nearly equal texts end in nearly the same last token: distances, their fall with length, and what low precision sees.

Texts that share a value of `family` are nearly equal, such as copies with one token more. Inside a family, texts are ordered by length and
each is compared with the next; only the last row of each is used. Beside their distances stands the typical one between texts of different
families. Arrays, one number per pair: `first` and `second`, samples over all captures laid end to end; `length` of the longer; `distance`.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError, UnknownNameError, nearest
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import power_law

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = dict.fromkeys(("first", "second", "length", "distance"), ("pair",))
REFERENCE = (
    "Barbero, Banino, Kapturowski, Kumaran, Araujo, Vitvitskyi, Pascanu, Velickovic, Transformers need glasses! Information over-squashing "
    "in language tasks, NeurIPS (2024): representational collapse of the last token"
)
SEEDS = (104,)
GROUPS = 20


class Config(Frozen):
    """Which texts are nearly equal."""

    family: str | None = None
    """The label whose equal values mark texts that are nearly equal; None: all texts are one family."""
    samples: int | None = Field(default=None, ge=2)
    """Whole samples to draw, which takes partners away from each other; None: all, if they hold no more rows than the most."""
    most_rows: int = Field(default=200_000, ge=2)
    """Refuse more rows than this in memory; a capture with `rows: {positions: last}` has one for each text."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = Field(default=0, ge=0)
    """Of the draw."""


class Result(Frozen):
    """Distances are Euclidean, of last rows as they are stored; None where the texts do not determine a number."""

    n_rows: int
    n_samples: int
    n_families: int
    n_alone: int
    """Texts without another of their family."""
    n_pairs: int
    distance: float | None
    """Mean over pairs."""
    typical: float | None
    """Root mean square between texts of different families; of all, where there is one family."""
    relative: Interval | None
    """Mean distance of pairs over the typical one, with an interval by leaving families out, where there are two or more."""
    n_equal: int
    """Pairs whose last rows are equal as they are stored."""
    equal_bfloat16: float | None
    """Share of pairs whose last rows are equal in bfloat16: no network that computes in it tells them apart."""
    exponent: float | None
    """Of the distance as a power of the length, where pairs have three lengths or more: below 0 texts collapse as they grow."""
    exponent_low: float | None
    exponent_high: float | None
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Last rows, pairs and distances.

    Raises:
        UnknownNameError: if there is no such label.
        MethodError: for less than two texts.

    Cost: rows features.
    """
    last = _last(block)
    if len(last) < 2:
        raise MethodError(f"found {len(last)} samples with rows, expected at least two; capture more")
    x, family = block["x"][last], _families(block, config)[last]
    length, sample = block.position[last] + 1, block.sample[last]
    first, second = _pairs(family, length, sample)
    distance = torch.linalg.vector_norm(x[first].double() - x[second].double(), dim=1)
    typical = _typical(x.double(), family)
    rounded = (x[first].bfloat16() == x[second].bfloat16()).all(1)
    counts = torch.bincount(family)
    law = _law(length[second].double(), distance, config)
    n = len(distance)
    result = Result(
        n_rows=len(block),
        n_samples=len(last),
        n_families=len(counts),
        n_alone=int((counts == 1).sum()),
        n_pairs=n,
        distance=float(distance.mean()) if n else None,
        typical=typical,
        relative=_relative(distance, family[first], typical, config),
        n_equal=int((x[first] == x[second]).all(1).sum()),
        equal_bfloat16=float(rounded.double().mean()) if n else None,
        exponent=None if law is None else law.exponent,
        exponent_low=None if law is None else law.low,
        exponent_high=None if law is None else law.high,
        caveats=_caveats(len(counts), n, law, config),
    )
    found = {"first": sample[first], "second": sample[second], "length": length[second], "distance": distance}
    return result, {name: Array(values, ARRAYS[name]) for name, values in found.items()}


def _last(block: Block) -> Tensor:
    """The row of each sample at its last position, by sample."""
    order = torch.argsort(block.index)
    there, counts = torch.unique_consecutive(block.sample[order], return_counts=True)
    last: Tensor = order[counts.cumsum(0) - 1] if len(there) else order
    return last


def _families(block: Block, config: Config) -> Tensor:
    """[row]: numbers from 0."""
    if config.family is None:
        return torch.zeros_like(block.sample)
    if config.family not in block.labels:
        raise UnknownNameError(
            f"there is no label {config.family!r}; nearest: {nearest(config.family, block.labels)}"
        )
    family: Tensor = torch.unique(block.labels[config.family], return_inverse=True)[1]
    return family


def _pairs(family: Tensor, length: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours inside families, by length, then by sample."""
    order = torch.argsort(sample)
    for key in (length, family):
        order = order[torch.argsort(key[order], stable=True)]
    inside = family[order[:-1]] == family[order[1:]]
    return order[:-1][inside], order[1:][inside]


def _typical(x: Tensor, family: Tensor) -> float | None:
    """Sums over pairs of squared distances are n sum |x|^2 - |sum x|^2, of all less those inside families."""
    x = x - x.mean(0)
    squares, n = x.square().sum(1), len(x)
    counts = torch.bincount(family).double()
    among = [n * float(squares.sum()) - float(x.sum(0).square().sum()), n * (n - 1) / 2]
    if len(counts) > 1:
        sums = x.new_zeros(len(counts), x.shape[1]).index_add(0, family, x)
        inside = counts * squares.new_zeros(len(counts)).index_add(0, family, squares) - sums.square().sum(1)
        among = [among[0] - float(inside.sum()), among[1] - float((counts * (counts - 1) / 2).sum())]
    return math.sqrt(max(0.0, among[0]) / among[1])


def _relative(distance: Tensor, family: Tensor, typical: float | None, config: Config) -> Interval | None:
    if not len(distance) or not typical:
        return None
    share = distance / typical
    _, group = torch.unique(family % GROUPS, return_inverse=True)
    n_groups = int(group.max()) + 1
    without = [float(share[group != g].mean()) for g in range(n_groups)] if n_groups > 1 else []
    return grouped_moments.interval(float(share.mean()), without, config.confidence)


def _law(length: Tensor, distance: Tensor, config: Config) -> power_law.PowerLaw | None:
    """Of pairs that differ at all."""
    kept = distance > 0
    if len(set(length[kept].tolist())) < 3:
        return None
    return power_law.fit(length[kept], distance[kept], config.confidence)


def _caveats(families: int, pairs: int, law: power_law.PowerLaw | None, config: Config) -> tuple[str, ...]:
    notes = []
    if config.family is None:
        notes.append("all texts count as one family: name the label of texts that are nearly equal")
    if families < 2:
        notes.append("one family has no interval, and its typical distance is that of its own texts")
    if pairs == 0:
        notes.append("no text has another of its family: drawing samples may have taken partners away")
    if law is not None:
        notes.append("the exponent's interval takes pairs as independent; pairs of one family share a text")
    return tuple(notes)

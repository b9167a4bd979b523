"""How alike the rows of one text have become: what is left of them beside their mean, cosines inside a text, and rank.

Run at every layer of a network to see rows of a text collapse with depth. Beside the texts stand texts of the same lengths whose rows are
drawn from all texts: a difference tells what a text adds, equality that all rows are alike. Arrays, one number per sample with two rows or
more: `sample`, over all captures laid end to end; `rows`; `residual`; `rank_one_residual`; `cosine`; `effective_rank`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.grouped_moments import Interval
from tasks.numerics import spectrum

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort()}
NUMBERS = ("residual", "rank_one_residual", "cosine", "effective_rank")
ARRAYS = dict.fromkeys(("sample", "rows", *NUMBERS), ("measured",))
REFERENCE = (
    "Residual about the mean row: Dong, Cordonnier, Loukas, Attention is not all you need, ICML (2021), here in the Frobenius norm; "
    "applied to depth in Geometric and dynamic scaling in deep transformers (2026)"
)
SEEDS = (270,)


class Config(Frozen):
    """Which texts."""

    samples: int | None = Field(default=None, ge=2)
    """Whole samples to draw; None: all, if they hold no more rows than the most."""
    most_rows: int = Field(default=100_000, ge=2)
    """Refuse more rows than this in memory."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = Field(default=0, ge=0)
    """Of the draw, and of the texts made of all texts' rows."""


class Result(Frozen):
    """Means over texts, with intervals by leaving texts out; None where no text determines a number."""

    n_rows: int
    n_samples: int
    """With rows."""
    n_measured: int
    """With two rows or more."""
    n_zero: int
    """Rows of length zero in measured samples: they count in residuals, and have no cosine."""
    residual: Interval | None
    """|X - 1 m^T| / |X| with the mean row m: 0 where all rows of a text are equal, near 1 where they have no common direction."""
    residual_mixed: float | None
    """The same for rows drawn from all texts."""
    rank_one_residual: Interval | None
    """What the best matrix of rank one leaves: rows may then differ in length and sign."""
    rank_one_residual_mixed: float | None
    """The same for rows drawn from all texts."""
    cosine: Interval | None
    """Of pairs of different rows of one text, without bounds where it is not positive."""
    cosine_mixed: float | None
    """Of pairs of rows of different texts."""
    effective_rank: Interval | None
    """exp of the entropy of squared singular values of a text's rows: 1 for rows of one direction, at most the number of rows."""
    effective_rank_mixed: float | None
    """The same for rows drawn from all texts."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Measure every text, and texts of the same lengths made of all rows.

    Raises:
        MethodError: if no sample has two rows.

    Cost: per text, min(rows, features)^2 max(rows, features), twice.
    """
    order = torch.argsort(block.index)
    x, sample = block["x"].double()[order], block.sample[order]
    there, counts = torch.unique_consecutive(sample, return_counts=True)
    long = counts > 1
    if not bool(long.any()):
        raise MethodError(
            f"none of {len(there)} samples has two rows; connect a site with a row for each token, without pooling"
        )
    kept = long.repeat_interleave(counts)
    x, counts = x[kept], counts[long]
    lengths = counts.tolist()
    texts = [_measured(rows) for rows in torch.split(x, lengths)]
    mixing = np.random.Generator(np.random.Philox(np.random.SeedSequence(config.seed))).permutation(len(x))
    mixed = [_measured(rows) for rows in torch.split(x[torch.from_numpy(mixing).to(x.device)], lengths)]
    means = {
        name: _mean(
            [getattr(text, name) for text in texts],
            config.confidence,
            math.inf if name == "effective_rank" else 1.0,
        )
        for name in NUMBERS
    }
    chance = {f"{name}_mixed": _plain([getattr(text, name) for text in mixed]) for name in NUMBERS}
    result = Result(
        n_rows=len(block),
        n_samples=len(there),
        n_measured=len(texts),
        n_zero=int((x == 0).all(1).sum()),
        **means,
        **(chance | {"cosine_mixed": _between(x, lengths)}),
        caveats=_caveats(len(texts), lengths),
    )
    arrays = {"sample": there[long], "rows": counts}
    arrays |= {name: x.new_tensor([getattr(text, name) for text in texts]) for name in NUMBERS}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


class _Text(NamedTuple):
    """Of the rows of one text; NaN where they do not determine a number."""

    residual: float
    rank_one_residual: float
    cosine: float
    effective_rank: float


def _measured(rows: Tensor) -> _Text:
    largest = float(rows.abs().max())
    if largest == 0:
        return _Text(math.nan, math.nan, math.nan, math.nan)
    rows = rows / largest
    values = torch.linalg.svdvals(rows).square()
    total = float(rows.square().sum())
    left = float((rows - rows.mean(0)).square().sum())
    unit = _unit(rows)
    n = len(unit)
    cosine = (float(unit.sum(0).square().sum()) - n) / (n * (n - 1)) if n > 1 else math.nan
    return _Text(
        math.sqrt(left / total),
        math.sqrt(float(values[1:].sum()) / total),
        cosine,
        spectrum.effective_rank(values),
    )


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, without those of length 0."""
    length = torch.linalg.vector_norm(rows, dim=1)
    unit: Tensor = rows[length > 0] / length[length > 0, None]
    return unit


def _between(x: Tensor, lengths: list[int]) -> float | None:
    """Mean cosine over pairs of rows of different texts."""
    texts = [_unit(rows) for rows in torch.split(x, lengths)]
    sums = torch.stack([unit.sum(0) for unit in texts])
    counts = np.array([len(unit) for unit in texts], dtype=float)
    pairs = counts.sum() ** 2 - (counts**2).sum()
    inside = sums.square().sum()
    return float((sums.sum(0).square().sum() - inside) / pairs) if pairs > 0 else None


def _plain(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float], confidence: float, most: float = math.inf) -> Interval | None:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    total, n = sum(known), len(known)
    without = [(total - value) / (n - 1) for value in known] if n > 1 else []
    return grouped_moments.interval(total / n, without, confidence, most)


def _caveats(texts: int, lengths: list[int]) -> tuple[str, ...]:
    notes = []
    if texts < 10:
        notes.append(f"{texts} texts: intervals rest on these")
    if max(lengths) > 2 * min(lengths):
        notes.append(
            f"texts have {min(lengths)} to {max(lengths)} rows, and short ones have smaller ranks and residuals: compare layers, or "
            "texts of one length"
        )
    return tuple(notes)

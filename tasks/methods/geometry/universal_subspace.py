"""Whether weights of many models share a low-dimensional subspace: joint spectra mode by mode, beside random weights, and held-out models.

Rows are one weight of different models (or checkpoints), centred over models. Modes of the stacked tensor [model, row, column]: directions
of whole weights, of their rows' space and of their columns' space. The test of a shared subspace is a model that had no part in it: the
share of its weight that the subspace of the others holds. Random weights have the same norms. Reconstructed from the abstract: the
paper's number of models per group and its thresholds are options.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from scipy.stats import t as student
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram, wishart
from tasks.numerics.spectrum import Eigen, eigen

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {
    "share": ("component",), "share_null": ("component",), "share_rows": ("row_component",), "share_columns": ("column_component",),
    "rows_basis": ("row_direction", "matrix_row"), "columns_basis": ("column_direction", "matrix_column"), "held_out": ("model",),
    "held_out_modes": ("model",),
}  # fmt: skip
REFERENCE = (
    "The universal weight subspace hypothesis (2025): mode-wise spectra of stacked weights, reconstructed from the abstract. Higher-order "
    "SVD: De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. 21 (2000) 1253"
)
SEEDS = (36,)
MAX_ROWS = 2048
WIDEST = 8192
"""Rows or columns of a matrix whose mode is decomposed."""


ROUNDING = 1e-14
"""Differences below this times a weight are none."""


class Config(Frozen):
    """How much a subspace holds, and how models are held out."""

    share: float = Field(default=0.9, gt=0, lt=1)
    """Of the variance over models that the counted components hold."""
    folds: int = Field(default=5, ge=2)
    """Parts that models are held out in; as many as models leaves each out alone."""
    center: bool = True
    """Subtract the mean model; off asks for a subspace of the weights themselves."""
    kept: int = Field(default=64, ge=1)
    """Directions of rows and of columns in the arrays, at most."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the interval over models."""
    seed: int = 0
    """Of random weights and of folds."""


class Result(Frozen):
    """Shares lie in [0, 1]. None where a mode is too wide, or nothing varies."""

    n_rows: int
    """Models."""
    rows: int
    columns: int
    components: int
    """Directions of whole weights that hold the share."""
    components_null: int
    """The same for random weights of these norms."""
    top_share: float | None
    """Variance in the first direction."""
    top_share_null: float | None
    components_rows: int | None
    """Directions of the space of the matrix's rows index (its outputs) that hold the share."""
    components_rows_null: int | None
    components_columns: int | None
    components_columns_null: int | None
    held_out: float | None
    """Mean share of a held-out model's weight, about the others' mean, inside as many directions as hold the share of the others."""
    held_out_low: float | None
    held_out_high: float | None
    """Interval of the mean over models as independent draws."""
    held_out_null: float | None
    """The same of random weights."""
    held_out_modes: float | None
    """The same inside the others' row directions and column directions together."""
    held_out_modes_null: float | None
    """Of a random weight and subspaces of these dimensions: the product of both shares of dimension."""
    n_identical: int
    """Models equal to the mean of all, which nothing can be said of."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Models that are compared at once."""
    return MAX_ROWS


class _Modes(NamedTuple):
    """Sums over the models of each fold, about the common mean."""

    rows: list[Tensor] | None
    """W W' each."""
    columns: list[Tensor] | None
    """W' W each."""


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Spectra of all modes, and held-out models.

    Raises:
        MethodError: for less than three models.

    Cost: model^2 feature for whole weights, model feature (rows + columns) for the other modes; folds times the cubes of models, rows
    and columns. Memory: the rows, and folds + 1 matrices of [rows, rows] and [columns, columns].
    """
    x = matrices.in_order(block)
    if len(x) < 3:
        raise MethodError(
            f"found {len(x)} models, expected at least 3: two span one difference; capture more"
        )
    shape = matrices.sides(inputs)
    mean = x.double().mean(0) if config.center else torch.zeros_like(x[0], dtype=torch.float64)
    products = gram.gram(x, center=config.center)
    still = products.diagonal() <= ROUNDING**2 * torch.stack([row.double().square().sum() for row in x])
    products = products.masked_fill(still[:, None] | still, 0.0)
    fold = _folds(len(x), config, x.device)
    modes = _modes(x, mean, shape, fold, still)
    null = _random_gram(products, x.shape[1], config)
    values, values_null = _values(products), _values(null)
    held, held_null = (_held_out(p, fold, config) for p in (products, null))
    wide = {name: _total(sums) for name, sums in modes._asdict().items()}
    found = {name: None if m is None else eigen(m) for name, m in wide.items()}
    inside, chance = _held_out_modes(x, mean, shape, fold, modes, config)
    arrays = {
        "share": _shares(values),
        "share_null": _shares(values_null),
        "held_out": held,
        "held_out_modes": inside,
    }
    counts: dict[str, int | None] = {}
    effective = _effective(products)
    for name, size, others in (("rows", shape[0], shape[1]), ("columns", shape[1], shape[0])):
        side = _side(found[name], size, max(1, round(others * effective)), config)
        counts |= {f"components_{name}": side.needed, f"components_{name}_null": side.needed_null}
        arrays |= {f"share_{name}": side.share.to(held), f"{name}_basis": side.basis.to(held)}
    low, high = _interval(held, config)
    some = float(values.sum()) > 0
    result = Result(
        n_rows=len(x),
        rows=shape[0],
        columns=shape[1],
        components=_count(values, config.share),
        components_null=_count(values_null, config.share),
        top_share=float(values[0] / values.sum()) if some else None,
        top_share_null=float(values_null[0] / values_null.sum()) if some else None,
        held_out=_mean(held),
        held_out_low=low,
        held_out_high=high,
        held_out_null=_mean(held_null),
        held_out_modes=_mean(inside),
        held_out_modes_null=chance,
        n_identical=int(still.sum()),
        caveats=_caveats(inputs, shape, len(x)),
        **counts,
    )
    return result, {name: Array(value, ARRAYS[name]) for name, value in arrays.items()}


class _Side(NamedTuple):
    """Of one mode; empty and None where it was not formed."""

    share: Tensor
    basis: Tensor
    needed: int | None
    needed_null: int | None


def _side(found: Eigen | None, size: int, draws: int, config: Config) -> _Side:
    """Its spectrum and basis, beside that of so many random vectors."""
    if found is None:
        return _Side(_shares(torch.zeros(0)), torch.zeros(0, size), None, None)
    values = found.values.clamp(min=0)
    count = _count(values, config.share)
    drawn = _values(wishart.drawn(size, draws, wishart.generator(config.seed)))
    basis = found.vectors[: min(count, config.kept)].contiguous()
    return _Side(_shares(values), basis, count, _count(drawn, config.share))


def _folds(n: int, config: Config, device: torch.device) -> Tensor:
    """int64 [model]: its fold."""
    order = wishart.generator(config.seed).permutation(n)
    return torch.from_numpy(order % min(config.folds, n)).to(device)


def _values(products: Tensor) -> Tensor:
    """Eigenvalues, falling, none below rounding."""
    values = torch.linalg.eigvalsh(products).flip(0)
    floor = len(values) * torch.finfo(torch.float64).eps * float(values[0])
    return torch.where(values > max(0.0, floor), values, 0.0)


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if len(values) and float(total) > 0 else values


def _count(values: Tensor, share: float) -> int:
    """The fewest that hold a share; 0 where nothing varies."""
    held = values.cumsum(0)
    return int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1 if float(held[-1]) > 0 else 0


def _random_gram(products: Tensor, width: int, config: Config) -> Tensor:
    """Products of random weights with the norms of these, centred as they are."""
    drawn = wishart.drawn(len(products), width, wishart.generator(config.seed)).to(products.device) / width
    sizes = products.diagonal().clamp(min=0).sqrt()
    found = sizes[:, None] * drawn * sizes
    if config.center:
        found = found - found.mean(0) - found.mean(1)[:, None] + found.mean()
    return found


def _effective(products: Tensor) -> float:
    """Models that count, by their squared norms."""
    sizes = products.diagonal().clamp(min=0)
    return float(sizes.sum().square() / sizes.square().sum()) if float(sizes.sum()) > 0 else 1.0


def _held_out(products: Tensor, fold: Tensor, config: Config) -> Tensor:
    """[model]: the share inside the subspace of models of other folds, from products alone; NaN for a model equal to their mean."""
    found = torch.full((len(products),), math.nan, dtype=torch.float64, device=products.device)
    for number in range(int(fold.max()) + 1):
        out, rest = torch.nonzero(fold == number)[:, 0], torch.nonzero(fold != number)[:, 0]
        inner, cross = products[rest][:, rest], products[out][:, rest]
        size = products.diagonal()[out]
        if config.center:
            size = size - 2 * cross.mean(1) + inner.mean()
            cross = cross - inner.mean(0) - cross.mean(1)[:, None] + inner.mean()
            inner = inner - inner.mean(0) - inner.mean(1)[:, None] + inner.mean()
        e = eigen(inner)
        values = torch.where(e.values > 1e-12 * max(float(e.values[0]), 0.0), e.values.clamp(min=0), 0.0)
        k = _count(values, config.share)
        held = (cross @ e.vectors[:k].T / values[:k].sqrt()).square().sum(1)
        some = size > 1e-12 * products.diagonal().max()
        found[out] = torch.where(some, (held / size.where(some, 1.0)).clamp(max=1.0), math.nan)
    return found


def _modes(x: Tensor, mean: Tensor, shape: tuple[int, int], fold: Tensor, still: Tensor) -> _Modes:
    n = int(fold.max()) + 1
    sums: list[list[Tensor] | None] = [
        [mean.new_zeros(side, side) for _ in range(n)] if side <= WIDEST else None for side in shape
    ]
    for row, number in zip(x[~still], fold[~still].tolist(), strict=True):
        w = (row.double() - mean).reshape(shape)
        if sums[0] is not None:
            sums[0][number] += w @ w.T
        if sums[1] is not None:
            sums[1][number] += w.T @ w
    return _Modes(*sums)


def _total(sums: list[Tensor] | None) -> Tensor | None:
    return None if sums is None else torch.stack(sums).sum(0)


def _held_out_modes(
    x: Tensor, mean: Tensor, shape: tuple[int, int], fold: Tensor, modes: _Modes, config: Config
) -> tuple[Tensor, float | None]:
    """[model]: the share inside row and column directions of other folds; and what a random weight has there."""
    found = torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device)
    if modes.rows is None or modes.columns is None:
        return found, None
    chance = []
    for number in range(len(modes.rows)):
        rest = fold != number
        moved = x[rest].double().mean(0) - mean if config.center else torch.zeros_like(mean)
        d, n = moved.reshape(shape), int(rest.sum())
        bases = []
        for sums, correction in ((modes.rows, d @ d.T), (modes.columns, d.T @ d)):
            e = eigen(torch.stack([m for k, m in enumerate(sums) if k != number]).sum(0) - n * correction)
            bases.append(e.vectors[: _count(e.values.clamp(min=0), config.share)])
        chance.append(len(bases[0]) / shape[0] * len(bases[1]) / shape[1])
        for model in torch.nonzero(~rest)[:, 0].tolist():
            v = (x[model].double() - mean - moved).reshape(shape)
            size = float(v.square().sum())
            if size > ROUNDING**2 * float(x[model].double().square().sum()):
                found[model] = min(1.0, float((bases[0] @ v @ bases[1].T).square().sum()) / size)
    return found, sum(chance) / len(chance)


def _mean(values: Tensor) -> float | None:
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else None


def _interval(values: Tensor, config: Config) -> tuple[float | None, float | None]:
    known = values[values.isfinite()]
    if len(known) < 2:
        return None, None
    reach = (
        float(student.ppf(0.5 + config.confidence / 2, len(known) - 1))
        * float(known.std())
        / len(known) ** 0.5
    )
    return max(0.0, float(known.mean()) - reach), min(1.0, float(known.mean()) + reach)


def _caveats(inputs: Inputs, shape: tuple[int, int], n: int) -> tuple[str, ...]:
    notes = list(matrices.caveats(inputs))
    if max(shape) > WIDEST:
        notes.append(f"modes wider than {WIDEST} are left out: the matrix is {shape[0]} x {shape[1]}")
    if n < 10:
        notes.append(
            f"{n} models: at most {n - 1} directions, so that few hold most of the variance whatever they are; read held-out shares"
        )
    return tuple(notes)

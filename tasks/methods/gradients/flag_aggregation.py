"""A mean of gradients that faulty workers cannot bend: the flag median of their directions.

Rows are gradients, one per worker. The subspace Y that is closest to all of them in the sum of sines, not of squares, gives each
worker a value |Y' g|^2 / |g|^2: near 0 for one that points elsewhere than the others.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import matrices
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram
from tasks.numerics.spectrum import eigen

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"value": ("row",), "weight": ("row",), "aggregate": ("feature",), "mean": ("feature",)}
REFERENCE = (
    "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex Optimization (2023): flag "
    "median by iteratively reweighted least squares, aggregate Y Y' g averaged; one iteration is what the authors' code runs"
)
SEEDS = (79,)
MAX_ROWS = 4096


class Config(Frozen):
    """The subspace and its iterations."""

    components: int | None = Field(default=None, ge=1)
    """Dimensions of the subspace; None: half of the workers, rounded up."""
    iterations: int = Field(default=10, ge=1, le=200)
    """Of reweighting; it ends earlier when values stop changing. 1 is the authors' code."""
    regularise: float = Field(default=1e-8, gt=0)
    """Least sine in a weight 1 / sine, so that a gradient inside the subspace has a finite weight."""
    suspicious: float = Field(default=0.5, gt=0, lt=1)
    """Workers whose value is below this share of the median value are counted as suspects."""


class Result(Frozen):
    """Values lie in [0, 1]."""

    n_rows: int
    width: int
    components: int
    """Used."""
    iterations: int
    """Run."""
    value: float | None
    """Median value of the workers."""
    value_least: float | None
    value_null: float
    """Value of a direction that has nothing to do with the others: components / width."""
    suspects: tuple[int, ...]
    """Rows whose value is low."""
    distance_to_mean: float | None
    """|aggregate - mean| / |mean|."""
    zero_rows: int
    """Gradients of zero, left out."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Workers that are compared at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Values, weights and the aggregate.

    Raises:
        MethodError: for no rows at all.

    Cost: row^2 feature, and row^3 for each iteration; nothing of size feature x component is formed.
    """
    x = matrices.in_order(block)
    if len(x) == 0:
        raise MethodError("found no gradients; at least one is needed")
    products = gram.gram(x, center=False)
    norms = products.diagonal().clamp(min=0).sqrt()
    kept = torch.nonzero(norms > 0)[:, 0]
    k = min(config.components or -(-len(kept) // 2), len(kept), x.shape[1]) if len(kept) else 0
    cosines = products[kept][:, kept] / torch.outer(norms[kept], norms[kept])
    found, weight, combination, done = _median(cosines, k, config)
    value = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    weights = torch.zeros_like(value)
    value[kept], weights[kept] = found, weight
    # Y Y' g over workers is a combination of the gradients: no direction has to be formed.
    coefficients = torch.zeros_like(value)
    coefficients[kept] = combination @ norms[kept] / norms[kept] / max(1, len(kept))
    arrays = {
        "value": value,
        "weight": weights,
        "aggregate": coefficients @ x.double(),
        "mean": x.double().mean(0),
    }
    return _result(arrays, kept, k, done, config), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _median(cosines: Tensor, k: int, config: Config) -> tuple[Tensor, Tensor, Tensor, int]:
    """Values, weights, the combination of unit gradients that is their projection, and the iterations run."""
    weight = torch.ones(len(cosines), dtype=torch.float64, device=cosines.device)
    value, combination = weight.clone(), torch.eye(len(cosines), dtype=torch.float64, device=cosines.device)
    if k == 0:
        return value, weight, combination, 0
    for number in range(1, config.iterations + 1):
        root = weight.sqrt()
        inner = eigen(root[:, None] * cosines * root[None, :])
        usable = min(k, int((inner.values > 1e-12 * inner.values[0]).sum()))
        basis = (root[:, None] * inner.vectors[:usable].T) / inner.values[
            :usable
        ].sqrt()  # Y = unit gradients @ basis
        before, projected = value, cosines @ basis
        value = projected.square().sum(1).clamp(max=1)
        combination = basis @ projected.T
        if float((value - before).abs().max()) < 1e-10:
            return value, weight, combination, number
        if number < config.iterations:
            weight = 1 / (1 - value).clamp(min=0).sqrt().clamp(min=config.regularise)
            weight = weight / weight.sum() * len(weight)
    return value, weight, combination, config.iterations


def _result(arrays: dict[str, Tensor], kept: Tensor, k: int, done: int, config: Config) -> Result:
    value, some = arrays["value"][kept], len(kept) > 0
    median = float(value.median()) if some else 0.0
    size = float(torch.linalg.vector_norm(arrays["mean"]))
    apart = float(torch.linalg.vector_norm(arrays["aggregate"] - arrays["mean"]))
    width = len(arrays["mean"])
    small = some and k >= len(kept)
    return Result(
        n_rows=len(arrays["value"]),
        width=width,
        components=k,
        iterations=done,
        value=median if some else None,
        value_least=float(value.min()) if some else None,
        value_null=k / width,
        suspects=tuple(kept[value < config.suspicious * median].tolist()),
        distance_to_mean=apart / size if size else None,
        zero_rows=len(arrays["value"]) - len(kept),
        caveats=("the subspace holds all gradients: no value can tell them apart; ask for fewer components",)
        if small
        else (),
    )

"""How far rows are a sum of one part for each of several concepts."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Rows = Float64[Tensor, "row feature"]
Codes = Int64[Tensor, "row concept"]


class Explained(NamedTuple):
    """Shares of the variance of rows; NaN where they do not vary."""

    marginal: float
    """By the sum of the means of each concept's values. Below 0 where concepts go together, as their parts are then counted twice."""
    marginal_whitened: float
    """The same after every direction in which rows vary was scaled to variance 1."""
    additive: float
    """By the best sum of one part per concept (least squares)."""
    cells: float
    """By the means of every combination that occurs: no function of the concepts explains more."""


def value_means(x: Rows, codes: Int64[Tensor, " row"]) -> Float64[Tensor, "value feature"]:
    """Means of the rows of each value that occurs, in the order of codes."""
    place = torch.unique(codes, return_inverse=True)[1]
    n = int(place.max()) + 1
    counts = torch.bincount(place, minlength=n)
    return x.new_zeros(n, x.shape[1]).index_add(0, place, x) / counts[:, None]


def explained(x: Rows, codes: Codes) -> Explained:
    """Of rows about their mean.

    Cost: row feature values, and feature^3 for the whitening.
    """
    x = x - x.mean(0)
    total = float(x.square().sum())
    if not total > 0:
        return Explained(math.nan, math.nan, math.nan, math.nan)
    places = [torch.unique(column, return_inverse=True)[1] for column in codes.T]
    means = [value_means(x, column) for column in codes.T]
    rest = x - sum((m[place] for m, place in zip(means, places, strict=True)), torch.zeros_like(x))
    cell = torch.unique(codes, dim=0, return_inverse=True)[1]
    within = x - value_means(x, cell)[cell]
    values, vectors = torch.linalg.eigh(x.T @ x)
    kept = values > 1e-10 * values[-1]
    whiten = vectors[:, kept] / values[kept].sqrt()
    return Explained(
        1 - float(rest.square().sum()) / total,
        1 - float((rest @ whiten).square().sum()) / int(kept.sum()),
        float(_fitted(x, places).square().sum()) / total,
        1 - float(within.square().sum()) / total,
    )


def _fitted(x: Tensor, places: list[Tensor]) -> Tensor:
    """The best sum of parts; parts that others make up already get the least length."""
    design = torch.cat([torch.nn.functional.one_hot(place).double() for place in places], dim=1)
    fitted: Tensor = design @ (torch.linalg.pinv(design.T @ design, hermitian=True) @ (design.T @ x))
    return fitted


def rank(means: Float64[Tensor, "value feature"], share: float) -> int:
    """Fewest directions through the origin that hold a share of the squares of some means."""
    squares = torch.linalg.svdvals(means).square()
    if not float(squares.sum()) > 0:
        return 0
    return int((squares.cumsum(0) < share * squares.sum() * (1 - 1e-12)).sum()) + 1


def cosine(a: Float64[Tensor, "first feature"], b: Float64[Tensor, "second feature"], same: bool) -> float:
    """Mean absolute cosine of parts of two concepts, or of different parts of the same; NaN without a pair that has directions."""
    a, b = (part / torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (a, b))
    cosines = (a @ b.T).abs()
    known = torch.isfinite(cosines)
    if same:
        known &= ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    return float(cosines[known].mean()) if bool(known.any()) else math.nan

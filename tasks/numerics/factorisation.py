"""Means of combinations of values taken apart: a mean, and a component for each value of each concept, that add up (least squares).

The design of K combinations has a column for each value. Components are centred within their concept, weighted by rows, so that they do not
depend on which of the equivalent solutions is found unless concepts are confounded; then they are those of least length.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

FLOOR = 1e-10
"""Eigenvalues of the design below this share of the largest are zero: they are counts of rows."""


class Factors(NamedTuple):
    """What was found; sums of squares are weighted by rows."""

    centre: Float64[Tensor, " feature"]
    component: Float64[Tensor, "value feature"]
    weight: Float64[Tensor, " value"]
    """Rows of each value."""
    between: float
    """Squared distance of combinations' means from the mean of all rows."""
    left: float
    """The same from what components add up to."""
    unseen: float
    """The same with each combination left out of the fit, over those that the others determine."""
    unseen_between: float
    """Of these, about the mean of the others."""
    n_unseen: int
    rank: int
    """Degrees of freedom of the components."""


def fit(
    mean: Float64[Tensor, "combination feature"],
    weight: Float64[Tensor, " combination"],
    value: Int64[Tensor, "combination concept"],
    concept: Int64[Tensor, " value"],
) -> Factors:
    """The additive model of the means of combinations.

    Args:
        mean: of the rows of each combination.
        weight: rows of each combination.
        value: which values it is made of, counted over all concepts.
        concept: of each value.

    Cost: combination value^2 + value^3 + combination value feature.
    """
    total = weight.sum()
    centre = (weight[:, None] * mean).sum(0) / total
    z = mean - centre
    design = torch.zeros(len(mean), len(concept), dtype=mean.dtype, device=mean.device).scatter_(
        1, value, 1.0
    )
    rows = weight @ design
    centred = design - rows / total
    values, vectors = torch.linalg.eigh(centred.T @ (weight[:, None] * centred))
    there: Bool[Tensor, " value"] = values > FLOOR * values[-1].clamp(min=1e-300)
    inverse = (vectors[:, there] / values[there]) @ vectors[:, there].T
    component = inverse @ (centred.T @ (weight[:, None] * z))
    component = component - ((concept[:, None] == concept) * rows / total) @ component
    error = z - centred @ component
    lever = weight * ((centred @ inverse) * centred).sum(1) + weight / total
    seen = lever < 1 - 1e-9
    out, alone = error[seen] / (1 - lever[seen])[:, None], z[seen] / (1 - weight[seen] / total)[:, None]
    return Factors(
        centre,
        component,
        rows,
        float((weight * z.square().sum(1)).sum()),
        float((weight * error.square().sum(1)).sum()),
        float((weight[seen] * out.square().sum(1)).sum()),
        float((weight[seen] * alone.square().sum(1)).sum()),
        int(seen.sum()),
        int(there.sum()),
    )


def spectra(found: Factors, concept: Int64[Tensor, " value"], n: int) -> list[tuple[Tensor, Tensor]]:
    """Variances and directions [direction, feature] of each concept's components, rows of values counted; those above rounding."""
    spaces = []
    for c in range(n):
        mine = concept == c
        rows = found.component[mine] * (found.weight[mine] / found.weight[mine].sum()).sqrt()[:, None]
        _, s, v = torch.linalg.svd(rows, full_matrices=False)
        largest = float(s.max()) if len(s) else 0.0
        there = s > 1e-7 * largest if largest > 0 else torch.zeros_like(s, dtype=torch.bool)
        spaces.append((s[there].square(), v[there]))
    return spaces


def cosines(component: Float64[Tensor, "value feature"], concept: Int64[Tensor, " value"]) -> float:
    """Mean |cosine| between components of different concepts; those of length zero are left out; NaN without a pair."""
    length = torch.linalg.vector_norm(component, dim=1)
    kept = length > 1e-7 * length.max() if len(length) else length > 0
    unit, which = component[kept] / length[kept, None], concept[kept]
    apart = which[:, None] < which
    found: Float64[Tensor, " pair"] = (unit @ unit.T)[apart].abs()
    return float(found.mean())

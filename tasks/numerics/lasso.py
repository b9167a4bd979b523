"""Sparse regression of many targets at once from products alone: min 1/2 |y - X b|^2 / n + penalty |b|_1 by coordinate descent."""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor


class Sparse(NamedTuple):
    """Weights, and a certificate."""

    weights: Float64[Tensor, "left target"]
    violation: float
    """The largest violation of the optimality conditions, in units of the penalty: 0 at the solution."""
    sweeps: int


def lasso(
    gram: Float64[Tensor, "left left"],
    cross: Float64[Tensor, "left target"],
    penalty: float,
    sweeps: int = 200,
    tolerance: float = 1e-6,
) -> Sparse:
    """Sparse weights for every target.

    Args:
        gram: X'X / n.
        cross: X'Y / n.
        penalty: positive; a target whose cross products are all below it gets no weights.
        sweeps: over all features, at most.
        tolerance: violation that ends it.

    Cost: left^2 target for each sweep.
    """
    weights = torch.zeros_like(cross)
    gradient = cross.clone()
    diagonal = gram.diagonal()
    some = [j for j, size in enumerate(diagonal.tolist()) if size > 0]
    done, worst = 0, violation(weights, gradient, penalty)
    while done < sweeps and worst > tolerance:
        for j in some:
            full = gradient[j] + diagonal[j] * weights[j]
            new = full.sign() * (full.abs() - penalty).clamp(min=0) / diagonal[j]
            gradient -= torch.outer(gram[j], new - weights[j])
            weights[j] = new
        done, worst = done + 1, violation(weights, gradient, penalty)
    return Sparse(weights, worst, done)


def violation(weights: Tensor, gradient: Tensor, penalty: float) -> float:
    """How far the gradient of the smooth part lies from the subdifferential, over the penalty."""
    if not weights.numel():
        return 0.0
    off = torch.where(
        weights == 0,
        (gradient.abs() - penalty).clamp(min=0),
        (gradient - penalty * weights.sign()).abs(),
    )
    return float(off.max()) / penalty

"""GPTQ: weights rounded one input after the other, what rounding loses being made up for by the inputs that are not rounded yet.

With G the second moment of the inputs, H = G + damping mean(diag G) I and H^-1 = U^T U with U upper triangular, input j is rounded, and the
inputs after it take off (w_j - q_j) / U_jj times row j of U: the optimal update of optimal brain quantisation for an order that all
rows share. U comes from one Cholesky decomposition of H from its last row to its first; nothing is inverted but a triangle. Source:
Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: accurate post-training quantization for generative pre-trained transformers", algorithm 1.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics.weight_codes import Coded, Scale, group_size, nearest, scale_of, values

BLOCK = 128
"""Inputs whose updates of all later ones are gathered into one product."""


def gptq(
    weight: Float64[Tensor, "output input"],
    second: Float64[Tensor, "input input"],
    bits: int,
    group: int | None = None,
    symmetric: bool = True,
    damping: float = 0.01,
    by_energy: bool = True,
    clip: bool = False,
) -> Coded:
    """Codes of a weight for inputs of a second moment.

    Args:
        weight: finite.
        second: E[x x^T], not all zero; inputs that are always zero are rounded to the nearest, as nothing makes up for them.
        bits: 1 to 8.
        group: inputs that share a scale, taken of the weights as they stand when the first of them is reached; None for whole rows, whose
            scale is that of the weights as given.
        damping: share of the mean diagonal that is added to it; more where the moment is singular.
        by_energy: take the inputs of largest second moment first, with scales of the weights as given.
        clip: narrow ranges where that makes the squared error of the weights smaller.

    Raises:
        MethodError: if the damped moment is not positive definite.

    Cost: O(input^3 + output input^2) in float64.
    """
    size = group_size(weight.shape[1], group)
    order = _order(second, by_energy)
    u = _inverse_factor(second, damping, order)
    work, code = weight[:, order].clone(), torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    given = [scale_of(part, bits, symmetric, clip) for part in torch.split(weight, size, 1)]
    moving = not by_energy and group is not None
    step = size * max(1, BLOCK // size) if moving else BLOCK
    for first in range(0, weight.shape[1], step):
        last = min(first + step, weight.shape[1])
        lost = torch.empty_like(work[:, first:last])
        for j in range(first, last):
            part = int(order[j]) // size
            if moving and j % size == 0:
                given[part] = scale_of(work[:, j : j + size], bits, symmetric, clip)
            code[:, order[j]], lost[:, j - first] = _round(work, j, given[part], bits, u)
            work[:, j:last] -= torch.outer(lost[:, j - first], u[j, j:last])
        work[:, last:] -= lost @ u[first:last, last:]
    steps, zeros = (torch.stack(each, 1) for each in zip(*given, strict=True))
    return Coded(code, steps, zeros, size)


def _round(work: Tensor, j: int, scale: Scale, bits: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of an input, and what the others have to make up for."""
    column, step, zero = work[:, j : j + 1], scale.step[:, None], scale.zero[:, None]
    code = nearest(column, step, zero, bits)
    return code[:, 0], (column - values(code, step, zero))[:, 0] / u[j, j]


def _order(second: Tensor, by_energy: bool) -> Int64[Tensor, " input"]:
    """Of the inputs."""
    if by_energy:
        return second.diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(second), device=second.device)


def _inverse_factor(second: Tensor, damping: float, order: Tensor) -> Float64[Tensor, "input input"]:
    """Upper triangular U with U^T U the inverse of the damped moment in that order."""
    damped = second[order][:, order].clone()
    damped.diagonal().add_(damping * second.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if bool(failed.any()) or not bool(lower.isfinite().all()):
        raise MethodError(
            f"the second moment of {len(second)} inputs is singular with a damping of {damping:g}; "
            "raise damping, or read more rows"
        )
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    return factor

"""Weights of a layer as a product of two factors whose first components are the best of any rank, for the inputs that the layer sees.

With G the second moment of inputs and H a metric of outputs, the W' of rank r with the least tr(H (W - W') G (W - W')') comes from the
singular vectors U of H^1/2 W G^1/2 alone: W' = H^-1/2 U_r U_r' H^1/2 W. Nothing of the inputs is inverted, so that a singular G, of few
rows or dead features, does no harm. For H = 1 these are the outputs' principal directions. Every rank is a prefix of the same factors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from schemas.errors import MethodError
from tasks.numerics import spectrum

NOTHING = 1e-10
"""Weights that factors leave out, over all weights, below which they are rounding."""


class Factors(NamedTuple):
    """left @ right is the weight; of their first r columns and rows, its best approximation of rank r."""

    left: Float64[Tensor, "output order"]
    right: Float64[Tensor, "order input"]


class Roots(NamedTuple):
    """Square roots of a metric M."""

    root: Float64[Tensor, "feature component"]
    """root @ root' = M."""
    inverse: Float64[Tensor, "component feature"]
    """root @ inverse = 1 where M is regular."""


def input_root(gram: Float64[Tensor, "input input"]) -> Float64[Tensor, "input component"]:
    """A root of the inputs' second moment, without directions that no input has.

    Raises:
        MethodError: if it is not finite, or the eigensolver fails.
    """
    found = spectrum.eigen(gram)
    there = found.values > spectrum.floor(found.values, 0.0, "float64")
    return found.vectors[there].T * found.values[there].sqrt()


def output_roots(metric: Float64[Tensor, "output output"], damping: float) -> Roots:
    """The symmetric root of the outputs' metric and its inverse.

    Args:
        metric: positive semidefinite.
        damping: added to every eigenvalue, over their mean; a metric of zeros counts as that of equal outputs.

    Raises:
        MethodError: if it is not finite, or the eigensolver fails.
    """
    found = spectrum.eigen(metric)
    mean = float(found.values.clamp(min=0).mean())
    values = found.values.clamp(min=0) + damping * mean if mean > 0 else torch.ones_like(found.values)
    values = values.clamp(min=torch.finfo(torch.float64).eps * float(values.max())).sqrt()
    return Roots(found.vectors.T * values @ found.vectors, found.vectors.T / values @ found.vectors)


def factored(
    weight: Float64[Tensor, "output input"],
    inputs: Float64[Tensor, "input component"] | None = None,
    outputs: Roots | None = None,
) -> Factors:
    """Factors of min(output, input) components, best first.

    Args:
        weight: finite.
        inputs: root of the inputs' second moment; None: all inputs count alike.
        outputs: roots of the outputs' metric, symmetric; None: all outputs count alike.

    Raises:
        MethodError: if the decomposition does not converge.

    Cost: O(output input min(output, input)).
    """
    inside = weight if outputs is None else outputs.root @ weight
    u = _left_vectors(inside if inputs is None else inside @ inputs)
    rest = inside - u @ (u.T @ inside)
    more = min(weight.shape) - u.shape[1]
    if more > 0 and float(rest.norm()) > NOTHING * float(inside.norm()):  # what no input has seen
        u = torch.cat([u, _left_vectors(rest)[:, :more]], 1)
    u = torch.nn.functional.pad(u, (0, min(weight.shape) - u.shape[1]))
    left, right = u if outputs is None else outputs.inverse @ u, u.T @ inside
    return Factors(left, right) if outputs is None else _balanced(left, right)


def _balanced(left: Tensor, right: Tensor) -> Factors:
    """The same product from columns and rows of equal length, which fit narrow dtypes."""
    lengths = left.norm(dim=0), right.norm(dim=1)
    there = (lengths[0] > 0) & (lengths[1] > 0)
    scale = torch.where(there, (lengths[1] / torch.where(there, lengths[0], 1.0)).sqrt(), 1.0)
    scale = torch.where(scale > 0, scale, 1.0)
    return Factors(left * scale, right / scale[:, None])


def losses(
    factors: Factors, inputs: Float64[Tensor, "input component"] | None, outputs: Roots | None = None
) -> Float64[Tensor, " rank"]:
    """tr(H (W - W_r) G (W - W_r)') for r = 0, 1, ... and all components, of any factors, best or not.

    Cost: O(order^2 (output + input)).
    """
    left = factors.left if outputs is None else outputs.root @ factors.left
    right = factors.right if inputs is None else factors.right @ inputs
    terms = (left.T @ left) * (right @ right.T)
    corners = terms.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return torch.cat([corners, corners.new_zeros(1)]).clamp(min=0)


def fitting_rank(kept: float, outputs: int, inputs: int) -> int:
    """The rank at which factors have that share of the weight's numbers; 1 at least."""
    return max(1, min(int(kept * outputs * inputs / (outputs + inputs)), outputs, inputs))


def _left_vectors(matrix: Tensor) -> Float64[Tensor, "output order"]:
    try:
        u = torch.linalg.svd(matrix, full_matrices=False).U
    except RuntimeError as error:
        raise MethodError(
            f"the singular value decomposition of a matrix of shape {tuple(matrix.shape)} did not converge: {error}"
        ) from error
    return spectrum.signed(u.T).T

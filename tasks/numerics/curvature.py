"""Products of a loss's curvature with vectors, by automatic differentiation: no matrix is formed.

Vectors are as long as all parameters together, which follow one another as given, each flattened.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

Vectors = Float64[Tensor, "probe parameter"]


def hessian_products(losses: Tensor, parameters: Sequence[Tensor], vectors: Vectors) -> Vectors:
    """The Hessian of the summed losses times some vectors (Pearlmutter 1994).

    Cost: a backward, and a backward through it for each vector.
    """
    slopes = torch.autograd.grad(losses.sum(), parameters, create_graph=True, allow_unused=True)
    used = [(slope, n) for n, slope in enumerate(slopes) if slope is not None and slope.requires_grad]
    return _each(
        vectors,
        parameters,
        lambda parts: _grads([s for s, _ in used], parameters, [parts[n] for _, n in used]),
    )


def gauss_newton_products(
    output: Tensor, loss_of: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], vectors: Vectors
) -> Vectors:
    """J' H J times some vectors, with J the Jacobian of the output and H the Hessian of the summed losses in it (Schraudolph 2002).

    Args:
        output: of the network, with its graph.
        loss_of: output to losses.
        parameters: of the network.
        vectors: to be multiplied.

    Cost: two backwards through the network and one through its backward, for each vector.
    """
    given = output.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(given).sum(), given, create_graph=True)
    pull, dummy = _pull(output, parameters)

    def product(parts: Sequence[Tensor]) -> list[Tensor]:
        pushed = _push(pull, dummy, parts)
        if not slope.requires_grad:
            return [torch.zeros_like(p) for p in parameters]
        (curved,) = torch.autograd.grad(slope, given, pushed, retain_graph=True)
        return _grads([output], parameters, [curved])

    return _each(vectors, parameters, product)


def fisher_products(losses: Tensor, parameters: Sequence[Tensor], vectors: Vectors) -> Vectors:
    """The sum of g g' over samples, with g the gradient of a sample's loss, times some vectors.

    Cost: as `gauss_newton_products`.
    """
    pull, dummy = _pull(losses, parameters)

    def product(parts: Sequence[Tensor]) -> list[Tensor]:
        return _grads([losses], parameters, [_push(pull, dummy, parts)])

    return _each(vectors, parameters, product)


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Parameters, or what belongs to each, as one vector in float64."""
    return torch.cat([part.detach().double().flatten() for part in parts])


def _each(
    vectors: Tensor, parameters: Sequence[Tensor], product: Callable[[Sequence[Tensor]], list[Tensor]]
) -> Tensor:
    rows = []
    for vector in vectors:
        pieces = torch.split(vector, [p.numel() for p in parameters])
        parts = [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, parameters, strict=True)]
        rows.append(flat(product(parts)))
    return torch.stack(rows)


def _grads(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Zeros where a parameter has no part."""
    if not outputs:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(outputs, parameters, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def _pull(output: Tensor, parameters: Sequence[Tensor]) -> tuple[list[Tensor | None], Tensor]:
    """The vector-Jacobian product as a function of a weight of the output, which is linear."""
    dummy = torch.zeros_like(output, requires_grad=True)
    found = torch.autograd.grad(output, parameters, dummy, create_graph=True, allow_unused=True)
    return list(found), dummy


def _push(pull: Sequence[Tensor | None], dummy: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The Jacobian times a vector: the derivative of the pull with respect to its weight."""
    used = [(g, part) for g, part in zip(pull, parts, strict=True) if g is not None]
    if not used:
        return torch.zeros_like(dummy)
    (pushed,) = torch.autograd.grad(
        [g for g, _ in used], dummy, [part for _, part in used], retain_graph=True
    )
    return pushed

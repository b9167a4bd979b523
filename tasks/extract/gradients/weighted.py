"""Gradients of weighted losses beside those of plain ones: whether rows belong to the samples they are counted to."""

import torch
from torch import Tensor

ADDED = {torch.float64: (1e-5, 1e-12), torch.float32: (1e-3, 1e-5)}
ADDED_COARSELY = (1e-1, 1e-2)
"""Of the norm of all samples' gradients of a parameter, and of all parameters, by which their sum may differ from the batch's, by dtype,
and in half precision; parts of a float64 network may be computed in float32."""
TOLERANCE = {torch.float64: 1e-10, torch.float16: 5e-2}
FINE = 1e-5
"""Relative difference of gradients times a power of two from those of a loss times that power, by dtype, and of all others: none, but where
kernels add up in an order that varies; and in float16, whose numbers end."""


def sample_weights(n: int, dtype: torch.dtype) -> list[Tensor]:
    """float64 [sample] each: powers of two, so that products are exact; any two samples differ in at least one of them.

    Args:
        n: samples; for each power of 41 that they exceed there is one more, of 7 in float16.
        dtype: in which gradients are computed; float16 has few exponents.
    """
    half, step = (3, 3) if dtype == torch.float16 else (20, 17)
    base, digits = 2 * half + 1, torch.arange(n)
    found = []
    while True:
        found.append(torch.pow(2.0, (digits * step % base - half).double()))  # neighbours lie far apart
        digits = digits // base
        if not bool(digits.any()):
            return found


def keeps_weights(plain: Tensor, weighted: Tensor, weights: Tensor, dtype: torch.dtype) -> bool:
    """Whether gradients of weighted losses are the plain ones times their sample's weight.

    Args:
        plain: [row, ...], rows of a sample together.
        weighted: the same of losses times weights.
        weights: [sample]
        dtype: in which gradients are computed.
    """
    if plain.numel() % len(weights):
        return False
    expected = _by_sample(plain, len(weights))
    expected = expected * weights.to(expected.device, expected.dtype)[:, None]
    error = _norms(_by_sample(weighted, len(weights)) - expected)
    return bool((error <= TOLERANCE.get(dtype, FINE) * _norms(expected)).all())


def adds_up(rows: Tensor, whole: Tensor, scale: float, dtype: torch.dtype) -> bool:
    """Whether rows are those of a batch's gradient, but for rounding.

    Args:
        rows: [sample, feature]
        whole: [1, feature], of the sum of all losses.
        scale: norm of the gradients of all samples and parameters, of which little may be rounding.
        dtype: in which gradients are computed.
    """
    own, little = ADDED.get(dtype, ADDED_COARSELY)
    error = torch.linalg.vector_norm(rows.double().sum(0) - whole[0].double())
    return bool(error <= own * torch.linalg.vector_norm(rows.double()) + little * scale)


def _by_sample(values: Tensor, n: int) -> Tensor:
    """[sample, number]"""
    real = torch.view_as_real(values) if values.is_complex() else values
    return real.reshape(n, -1)


def _norms(rows: Tensor) -> Tensor:
    """float64 [row]"""
    found: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return found

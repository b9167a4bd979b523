"""Lanczos with full reorthogonalisation, one product at a time, for several starting vectors side by side.

The matrix is never seen: whoever holds it multiplies `vectors(carry)` and gives the products to `advance`. Everything is kept in a dict of
tensors, so that a run can be saved between two products.

Golub, Meurant: Matrices, Moments and Quadrature (2010), chapters 4 and 6; Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017):
stochastic quadrature.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

State = dict[str, Tensor]
BREAKDOWN = 1e-12
"""A new direction this small beside the matrix is none."""


class Ritz(NamedTuple):
    """Approximate eigenpairs of one starting vector, by falling magnitude."""

    values: Float64[Tensor, " pair"]
    vectors: Float64[Tensor, "pair entry"]
    residuals: Float64[Tensor, " pair"]
    """|A v - theta v|: some eigenvalue lies this close to theta."""


class Quadrature(NamedTuple):
    """Where a starting vector's share of the spectrum lies."""

    nodes: Float64[Tensor, "probe node"]
    weights: Float64[Tensor, "probe node"]
    """Not negative, each row adds up to 1."""


def start(n: int, probes: int, seed: int) -> State:
    """Seeded Rademacher vectors of length 1, the same on every device.

    Args:
        n: entries.
        probes: vectors.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 2, (probes, 1, n), generator=generator, dtype=torch.int8).double() * 2 - 1
    empty = torch.zeros(probes, 0, dtype=torch.float64)
    return {"basis": drawn / n**0.5, "alpha": empty, "beta": empty.clone()}


def vectors(carry: State) -> Float64[Tensor, "probe entry"]:
    """What is to be multiplied next; zeros where a probe has found all that it can reach."""
    return carry["basis"][:, -1]


def advance(carry: State, products: Float64[Tensor, "probe entry"]) -> State:
    """The next step of every probe.

    Args:
        carry: as it was when `vectors` gave what is multiplied.
        products: the matrix times these.

    Cost: 8 step entry flops for each probe.
    """
    basis = carry["basis"]
    current = basis[:, -1]
    alpha = (current * products).sum(1)
    rest = products.clone()
    for _ in range(2):  # once leaves rounding of the size of the matrix behind
        rest = rest - torch.einsum("psn,ps->pn", basis, torch.einsum("psn,pn->ps", basis, rest))
    beta = torch.linalg.vector_norm(rest, dim=1)
    scale = torch.maximum(alpha.abs(), torch.linalg.vector_norm(products, dim=1))
    if carry["alpha"].shape[1]:
        scale = torch.maximum(scale, carry["alpha"].abs().amax(1))
    alive = beta > BREAKDOWN * scale
    following = torch.where(alive[:, None], rest / torch.where(alive, beta, 1.0)[:, None], 0.0)
    return {
        "basis": torch.cat([basis, following[:, None]], dim=1),
        "alpha": torch.cat([carry["alpha"], alpha[:, None]], dim=1),
        "beta": torch.cat([carry["beta"], torch.where(alive, beta, 0.0)[:, None]], dim=1),
    }


def ritz(carry: State, probe: int = 0) -> Ritz:
    """Eigenpairs of the matrix inside the space of a probe."""
    k = _steps(carry, probe)
    values, inner = torch.linalg.eigh(_tridiagonal(carry, probe, k))
    order = torch.argsort(-values.abs(), stable=True)
    values, inner = values[order], inner[:, order]
    last = carry["beta"][probe, k - 1]
    return Ritz(values, inner.T @ carry["basis"][probe, :k], (last * inner[-1]).abs())


def quadrature(carry: State, steps: int | None = None) -> Quadrature:
    """Gauss quadrature of every probe's spectral measure after so many steps; None: all of them.

    Nodes of probes that ended early are repeated with weight zero.
    """
    size = carry["alpha"].shape[1] if steps is None else steps
    nodes, weights = [], []
    for probe in range(len(carry["alpha"])):
        k = min(size, _steps(carry, probe))
        values, inner = torch.linalg.eigh(_tridiagonal(carry, probe, k))
        pad = size - k
        nodes.append(torch.cat([values, values[-1:].expand(pad)]))
        weights.append(torch.cat([inner[0].square(), values.new_zeros(pad)]))
    return Quadrature(torch.stack(nodes), torch.stack(weights))


def _steps(carry: State, probe: int) -> int:
    """Steps until a probe had found all that it can reach."""
    ended = torch.nonzero(carry["beta"][probe] == 0)[:, 0]
    return int(ended[0]) + 1 if len(ended) else carry["alpha"].shape[1]


def _tridiagonal(carry: State, probe: int, k: int) -> Tensor:
    beta = carry["beta"][probe, : k - 1]
    return torch.diag(carry["alpha"][probe, :k]) + torch.diag(beta, 1) + torch.diag(beta, -1)

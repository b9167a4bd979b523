"""The spectrum of a loss's curvature as a density: the bulk, the outliers beside it, and the share below zero.

Stochastic Lanczos quadrature: the spectral measures of some random vectors, averaged. Arrays: `grid` and `density` with
`density_error` (point), `node` and `weight` (probe, node).
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import network_products
from tasks.methods.contract import Array, Arrays, BatchesPort, Block, Inputs, State
from tasks.methods.network_products import Matrix, merge
from tasks.numerics import lanczos
from tasks.numerics.lanczos import Quadrature

__all__ = ["merge"]

VERSION = 1
KIND = "reduce"
READS = {"model": BatchesPort()}
ARRAYS = {
    "grid": ("point",), "density": ("point",), "density_error": ("point",), "node": ("probe", "node"), "weight": ("probe", "node"),
}  # fmt: skip
REFERENCE = (
    "Sagun, Evci, Guney, Dauphin, Bottou: Empirical Analysis of the Hessian of Over-Parametrized Neural Networks (2017): bulk and "
    "outliers. Ghorbani, Krishnan, Xiao, ICML 2019: the density by quadrature. Ubaru, Chen, Saad 2017: its error"
)
SEEDS = (95,)


class Config(Frozen):
    """How many vectors and steps, and how smooth the density is."""

    matrix: Matrix = "hessian"
    """As for `gradients.hessian`."""
    probes: int = Field(default=6, ge=2, le=256)
    """Random vectors; the error falls with the square root of their number."""
    steps: int = Field(default=30, ge=4, le=500)
    """Passes over the samples. Memory and what is saved after each are probes x passes so far vectors."""
    width: float = Field(default=0.02, gt=0, le=1)
    """Standard deviation of the Gaussian that smooths the density, over the spread of the spectrum."""
    points: int = Field(default=400, ge=16, le=10000)
    """Of the grid."""
    parameters: tuple[str, ...] = ("**",)
    """Globs over parameters."""
    seed: int = 0
    """Of the vectors."""


class Result(Frozen):
    """Numbers with `_error` carry the standard error over probes."""

    n_samples: int
    n_parameters: int
    matrix: str
    loss: float
    steps: int
    """Passes over the samples."""
    trace: float
    trace_error: float
    square: float
    """Sum of squared eigenvalues."""
    square_error: float
    negative_share: float
    """Share of eigenvalues below zero by more than the rounding of the products."""
    negative_share_error: float
    smallest: float
    largest: float
    """The outermost nodes: inside the spectrum, and close to its ends."""
    bulk_edge: float
    """Where the bulk ends: outliers lie beyond the largest gap between neighbouring nodes of the upper half."""
    outliers: float
    """Eigenvalues beyond it, their estimated number."""
    outliers_error: float
    density_error: float
    """Integral of the absolute standard error of the density, of which the whole is 1."""
    quadrature_error: float
    """Integral of the absolute difference between the density of all steps and that of two fewer."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before any pass.

    Raises:
        MethodError: if a glob matches no parameter.
    """
    network_products.chosen(inputs.parameters, config.parameters)


def start(inputs: Inputs, config: Config) -> State:
    """Seeded vectors."""
    n = network_products.size(network_products.chosen(inputs.parameters, config.parameters))
    return lanczos.start(n, config.probes, config.seed)


def state_config(config: Config) -> dict[str, object]:
    """The products depend on the matrix and its parameters."""
    return {"matrix": config.matrix, "parameters": list(config.parameters)}


def partial(block: Block, carry: State, config: Config) -> State:
    """The matrix times the current vectors, for some samples."""
    return network_products.products(block, carry, config)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The next vectors, or None after the last step, or when nothing is left to be found."""
    following = network_products.advanced(state, carry)
    ended = bool((following["beta"] == 0).any(dim=1).all())
    return None if ended or following["alpha"].shape[1] >= config.steps else following


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The density and what it says."""
    done = network_products.advanced(state, carry)
    n = network_products.size(network_products.chosen(inputs.parameters, config.parameters))
    all_steps = lanczos.quadrature(done)
    taken = done["alpha"].shape[1]
    grid, sigma = _grid(all_steps, config)
    each = _densities(all_steps, grid, sigma)
    fewer = _densities(lanczos.quadrature(done, max(1, taken - 2)), grid, sigma).mean(0)
    error = each.std(0) / config.probes**0.5
    step = float(grid[1] - grid[0])
    arrays = {
        "grid": grid,
        "density": each.mean(0),
        "density_error": error,
        "node": all_steps.nodes,
        "weight": all_steps.weights,
    }
    result = _result(state, all_steps, n, taken, config).model_copy(
        update={
            "density_error": float(error.sum()) * step,
            "quadrature_error": float((each.mean(0) - fewer).abs().sum()) * step,
        }
    )
    return result, {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


def _grid(found: Quadrature, config: Config) -> tuple[Tensor, float]:
    low, high = float(found.nodes.min()), float(found.nodes.max())
    spread = max(high - low, 1e-12 * max(abs(low), abs(high)), 1e-300)
    sigma = config.width * spread
    return torch.linspace(low - 5 * sigma, high + 5 * sigma, config.points, dtype=torch.float64), sigma


def _densities(found: Quadrature, grid: Tensor, sigma: float) -> Tensor:
    """[probe, point]"""
    nodes, weights = found.nodes.to(grid.device), found.weights.to(grid.device)
    kernel = torch.exp(-0.5 * ((grid[None, None] - nodes[:, :, None]) / sigma).square())
    return (weights[:, :, None] * kernel).sum(1) / (sigma * math.sqrt(2 * math.pi))


def _result(state: State, found: Quadrature, n: int, steps: int, config: Config) -> Result:
    nodes, weights = found
    scale = float(nodes.abs().max())
    moments = [n * (weights * nodes**power).sum(1) for power in (1, 2)]
    negative = (weights * (nodes < -1e-6 * scale)).sum(1)
    edge = _edge(nodes, weights)
    beyond = n * (weights * (nodes > edge)).sum(1)
    root = config.probes**0.5
    return Result(
        n_samples=int(state["samples"]),
        n_parameters=n,
        matrix=config.matrix,
        loss=float(state["loss"]) / int(state["samples"]),
        steps=steps,
        trace=float(moments[0].mean()),
        trace_error=float(moments[0].std()) / root,
        square=float(moments[1].mean()),
        square_error=float(moments[1].std()) / root,
        negative_share=float(negative.mean()),
        negative_share_error=float(negative.std()) / root,
        smallest=float(nodes.min()),
        largest=float(nodes.max()),
        bulk_edge=edge,
        outliers=float(beyond.mean()),
        outliers_error=float(beyond.std()) / root,
        density_error=0.0,
        quadrature_error=0.0,
        caveats=(
            "standard errors are those over random vectors; few of them tell little of their own spread",
        )
        if config.probes < 10
        else (),
    )


def _edge(nodes: Tensor, weights: Tensor) -> float:
    """The lower end of the largest gap between neighbouring nodes above the middle of the spectrum's mass."""
    values, order = torch.sort(nodes.flatten())
    mass = weights.flatten()[order].cumsum(0) / len(nodes)
    upper = values[mass >= 0.5]
    if len(upper) < 2:
        return float(values[-1])
    gap = int((upper[1:] - upper[:-1]).argmax())
    return float(upper[gap])

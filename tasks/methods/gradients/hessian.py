"""The leading eigenpairs of a loss's curvature over all samples, each with a certificate.

Products with the Hessian (or the Gauss-Newton or the empirical Fisher matrix) are summed over samples, never over changing
mini-batches, so that Lanczos converges to one matrix's eigenpairs. Arrays: `eigenvalue`, `residual` (component), `eigenvector`
(component, parameter) in the order of `parameters`.
"""

from pydantic import Field

from schemas.base import Frozen
from tasks.methods import network_products
from tasks.methods.contract import Array, Arrays, BatchesPort, Block, Inputs, State
from tasks.methods.network_products import Matrix, merge
from tasks.numerics import lanczos
from tasks.numerics.spectrum import signed

__all__ = ["merge"]

VERSION = 2
KIND = "reduce"
READS = {"model": BatchesPort()}
ARRAYS = {"eigenvalue": ("component",), "residual": ("component",), "eigenvector": ("component", "parameter")}
REFERENCE = (
    "Pearlmutter, Neural Computation 6 (1994): products. Schraudolph, Neural Computation 14 (2002): Gauss-Newton. Golub, Van Loan, "
    "Matrix Computations, section 10.1: Lanczos and its residuals"
)
SEEDS = (15,)


class Config(Frozen):
    """Which matrix, and how much of it."""

    matrix: Matrix = "hessian"
    """`gauss-newton` is the Hessian without the network's own curvature, never negative; `fisher` the mean of g g' over samples."""
    components: int = Field(default=5, ge=1, le=256)
    """Eigenpairs of largest magnitude."""
    tolerance: float = Field(default=1e-4, gt=0)
    """Done when every residual |A v - lambda v| is below this times the largest eigenvalue."""
    max_rounds: int = Field(default=60, ge=2, le=1000)
    """Passes over the samples at most. Memory and what is saved after each are as many vectors as passes so far."""
    parameters: tuple[str, ...] = ("**",)
    """Globs over parameters; the matrix is that of these, the others held."""
    seed: int = 0
    """Of the first vector."""


class Result(Frozen):
    """Eigenvalues are of the mean loss over samples."""

    n_samples: int
    n_parameters: int
    parameters: tuple[str, ...]
    matrix: str
    loss: float
    """Mean over samples."""
    rounds: int
    """Passes over the samples."""
    converged: bool
    """Whether there are as many pairs as asked for, or as parameters, all within the tolerance."""
    largest: float
    """Of largest magnitude."""
    negative: int
    """How many of the components are below zero by more than their residual."""
    residual: float
    """Largest residual over the largest magnitude: some eigenvalue lies within it of each given one."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before any pass.

    Raises:
        MethodError: if a glob matches no parameter.
    """
    network_products.chosen(inputs.parameters, config.parameters)


def start(inputs: Inputs, config: Config) -> State:
    """A seeded vector."""
    return lanczos.start(
        network_products.size(network_products.chosen(inputs.parameters, config.parameters)), 1, config.seed
    )


def state_config(config: Config) -> dict[str, object]:
    """The products depend on the matrix and its parameters."""
    return {"matrix": config.matrix, "parameters": list(config.parameters)}


def partial(block: Block, carry: State, config: Config) -> State:
    """The matrix times the current vector, for some samples."""
    return network_products.products(block, carry, config)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The next vector, or None when the pairs are good enough, or nothing is left to be found."""
    following = network_products.advanced(state, carry)
    found = lanczos.ritz(following)
    steps = following["alpha"].shape[1]
    ended = float(following["beta"][0, -1]) == 0
    if ended or steps >= config.max_rounds or _converged(found, config):
        return None
    return following


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Eigenpairs from all products."""
    done = network_products.advanced(state, carry)
    found = lanczos.ritz(done)
    k = min(config.components, len(found.values))
    shapes = network_products.chosen(inputs.parameters, config.parameters)
    values, residuals = found.values[:k], found.residuals[:k]
    ended, converged = float(done["beta"][0, -1]) == 0, _converged(found, config)
    arrays = {
        "eigenvalue": values,
        "residual": residuals,
        "eigenvector": signed(found.vectors[:k]) if k else found.vectors[:0],
    }
    largest = float(values[0])
    result = Result(
        n_samples=int(state["samples"]),
        n_parameters=network_products.size(shapes),
        parameters=tuple(shapes),
        matrix=config.matrix,
        loss=float(state["loss"]) / int(state["samples"]),
        rounds=done["alpha"].shape[1],
        converged=converged,
        largest=largest,
        negative=int((values < -residuals - 1e-12 * abs(largest)).sum()),
        residual=float(residuals.max()) / abs(largest) if largest else 0.0,
        caveats=_caveats(k, ended, converged, config),
    )
    return result, {name: Array(array, ARRAYS[name]) for name, array in arrays.items()}


def _converged(found: lanczos.Ritz, config: Config) -> bool:
    k = min(config.components, found.vectors.shape[1])
    if len(found.values) < k:
        return False
    return bool(found.residuals[:k].max() <= config.tolerance * found.values[0].abs())


def _caveats(k: int, ended: bool, converged: bool, config: Config) -> tuple[str, ...]:
    few = f"the first vector reaches only {k} different eigenvalues"
    late = f"not converged in {config.max_rounds} passes: residuals say how far each may be off"
    repeated = "of an eigenvalue that occurs several times, one vector is found"
    said = ((few, ended and k < config.components), (late, not ended and not converged), (repeated, True))
    return tuple(text for text, holds in said if holds)

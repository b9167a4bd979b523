"""The leading principal subspace of a wide site by block subspace iteration, with a certificate.

For sites too wide for a feature x feature covariance: memory is features times components, and each round is one pass
over the rows. Arrays: `eigenvalue` and `residual` (component), `components` (component, feature) with orthonormal
rows, `mean` (feature).
"""

import math

import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import moments, products, subspace
from tasks.numerics.subspace import Ritz

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "eigenvalue": ("component",),
    "residual": ("component",),
    "components": ("component", "feature"),
    "mean": ("feature",),
}
REFERENCE = (
    "Rutishauser, Numerische Mathematik 13 (1969) 4: simultaneous iteration with Ritz values. Davis, Kahan, SIAM Journal on "
    "Numerical Analysis 7 (1970) 1: the angle"
)
SEEDS = ()


class Config(Frozen):
    """How many components, how exactly, and in how many rounds."""

    components: int = Field(default=32, ge=1)
    """Basis vectors to find."""
    oversample: int = Field(default=16, ge=0)
    """Further vectors in the block: the error shrinks per round by (lambda_(components + oversample + 1) /
    lambda_components)."""
    tolerance: float = Field(default=1e-6, gt=0)
    """Done when every residual |C v - lambda v| is below this times the largest eigenvalue."""
    max_rounds: int = Field(default=16, ge=2)
    """Passes over the rows at most; the result says whether they sufficed."""
    seed: int = 0
    """Of the random first block."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found, and how far it can be off."""

    n_rows: int
    width: int
    components: int
    rounds: int
    """Passes over the rows."""
    converged: bool
    trace: float
    """Total variance, exact."""
    explained: float | None
    """Share of the trace in the subspace, at most that of the best one; None without variance."""
    residual: float | None
    """Largest residual over the largest eigenvalue."""
    outside: float
    """Variance outside: no value can be too small by more, whatever the iteration missed."""
    angle_bound: float | None
    """The sine of the largest angle to the true subspace is below this; None where no bound can be proven."""
    angle_estimate: float | None
    """The same if the iteration missed no direction; None without a gap or without oversampling."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if more components are asked for than there are features.
    """
    if config.components > inputs.widths["x"]:
        raise MethodError(
            f"asked for {config.components} components, the site has {inputs.widths['x']} features"
        )


def start(inputs: Inputs, config: Config) -> State:
    """A random block, and no shift yet."""
    width = inputs.widths["x"]
    q = subspace.start(width, min(width, config.components + config.oversample), config.seed)
    return {"q": q, "shift": torch.zeros(width, dtype=torch.float64), "round": torch.tensor(0)}


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on beside the carry."""
    return {"weight_label": config.weight_label}


def partial(block: Block, carry: State, config: Config) -> State:
    """The covariance times the block, for some rows."""
    return products.partial(block["x"], block.weight, carry["q"], carry["shift"])


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return products.merge(a, b)


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """The next block, or None when this one will do.

    Raises:
        MethodError: for less than two rows.
    """
    found, done = _ritz(state, carry), int(carry["round"]) + 1
    if done > 1 and (done >= config.max_rounds or _converged(found, config)):
        return None
    return {
        "q": subspace.orthonormal(state["p"]),
        "shift": carry["shift"] + state["mean"],
        "round": carry["round"] + 1,
    }


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The leading Ritz pairs and their certificate."""
    found, k = _ritz(state, carry), config.components
    explained = float(found.values[:k].sum()) / found.trace if found.trace > 0 else None
    result = Result(
        n_rows=int(state["n"]),
        width=len(state["mean"]),
        components=k,
        rounds=int(carry["round"]) + 1,
        converged=_converged(found, config),
        trace=found.trace,
        explained=None if explained is None else min(1.0, explained),
        residual=_residual(found, k),
        outside=subspace.outside(found, k),
        angle_bound=_finite(subspace.angle_bound(found, k)),
        angle_estimate=_finite(subspace.angle_estimate(found, k)),
    )
    arrays = {
        "eigenvalue": found.values[:k],
        "residual": found.residuals[:k],
        "components": found.vectors[:k].contiguous(),
        "mean": carry["shift"] + state["mean"],
    }
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _ritz(state: State, carry: State) -> Ritz:
    moments.require(state, 2)
    divisor = moments.degrees(state)
    return subspace.ritz(state["p"] / divisor, carry["q"], float(state["energy"]) / divisor)


def _residual(found: Ritz, k: int) -> float | None:
    largest = float(found.values[0])
    return float(found.residuals[:k].max()) / largest if largest > 0 else None


def _converged(found: Ritz, config: Config) -> bool:
    residual = _residual(found, config.components)
    return residual is None or residual <= config.tolerance


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

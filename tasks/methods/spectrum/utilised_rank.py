"""How much of a layer's weights its data use: the rank of the weights between the directions of its inputs and those of its outputs.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. With weights W [out, in], S the fewest principal directions that
hold the chosen share of the inputs' energy and T those of the outputs W x, the utilised weights are P_T W P_S, and the utilised rank is
the smaller of both numbers. The outputs' moments follow from the inputs' and W, so that the error of replacing W is exact, and no other
site is read. A bias stays as it is and is left out of the outputs.

The paper's side convention and threshold were not read: inputs on the right, outputs on the left, and the threshold as an option, are a
reconstruction. Arrays: `input_basis` and `output_basis`, S and T as orthonormal rows, so that the utilised weights are
T^T (T W S^T) S; `singular_value` of the utilised and `weight_value` of the stored weights, descending.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.grouped_moments import Interval
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.numerics import energy, spectrum
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "input_basis": ("input_component", "feature"),
    "output_basis": ("output_component", "output"),
    "singular_value": ("order",),
    "weight_value": ("order",),
}
REFERENCE = (
    "Revealing the utilized rank of subspaces of learning in neural networks (2024): weights projected on the subspaces where data and "
    "weights interact; layer utilisation"
)
SEEDS = (55,)


class Config(Frozen):
    """Which weights, and how much of the energy."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the site."""
    energy: float = Field(default=0.99, gt=0, le=1)
    """Share of the inputs' and of the outputs' energy that their subspaces must hold."""
    center: bool = False
    """Take energy about the mean rather than about zero; a bias must then make up for the mean."""
    groups: int = Field(default=20, ge=5, le=200)
    """Groups that samples are dealt into for the intervals; each costs one more covariance of memory and two more decompositions."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    """Inputs of the layer."""
    outputs: int
    """Outputs of the layer."""
    weight_rank: int
    """Numerical rank of the stored weights."""
    input_rank: int
    """Directions of the inputs that hold the energy."""
    output_rank: int
    """Directions of the outputs that hold the energy."""
    rank: int
    """The utilised rank, the smaller of both."""
    utilisation: float
    """The utilised rank over the smaller side of the weights."""
    utilisation_alike: float
    """The same for inputs with the same energy in every direction: what the weights alone leave unused."""
    fractional_utilisation: Interval | None
    """The same with ranks interpolated between components, which unlike whole numbers can have an interval."""
    error: Interval | None
    """|W X - W' X| / |W X| of the utilised weights W'; None where all outputs are zero."""
    parameters: float
    """Numbers in the two factors of the utilised weights over those in W; above 1 the factors do not pay."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    return (config.weight,)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no linear map of the site's features, or the groups' covariances take more than 2 GiB.
    """
    width = inputs.widths["x"]
    grouped_moments.check(width, config.groups)
    weight = inputs.weights[config.weight]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise MethodError(
            f"{config.weight} has the shape {tuple(weight.shape)}, expected [outputs, {width}] for the {width} features of the site; "
            "connect the input of a linear layer, such as encoder.layer.0.output.dense:in:0"
        )
    if not bool(weight.isfinite().all()):
        raise MethodError(f"{config.weight} holds NaN or infinity; load another checkpoint")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """All numbers from all rows, and those with intervals from all rows but each group's.

    Raises:
        MethodError: for less than two groups with rows.

    Cost: O(groups (width^3 + outputs width min(outputs, width))).
    """
    stored = inputs.weights[config.weight]
    weight = stored.double()
    groups = grouped_moments.groups_of(state)
    whole = _used(grouped_moments.total(groups), weight, config)
    without = [_used(rest, weight, config) for rest in grouped_moments.leaving_out(groups)]
    values = torch.linalg.svdvals(weight)
    ranks = len(whole.inputs), len(whole.outputs)
    n_rows, smaller = sum(int(group["n"]) for group in groups), min(weight.shape)
    alike = math.ceil(config.energy * weight.shape[1]), energy.components(values.square(), config.energy)
    result = Result(
        n_rows=n_rows,
        n_groups=len(groups),
        width=weight.shape[1],
        outputs=weight.shape[0],
        weight_rank=int((values > max(weight.shape) * torch.finfo(stored.dtype).eps * values[0]).sum()),
        input_rank=ranks[0],
        output_rank=ranks[1],
        rank=min(ranks),
        utilisation=min(ranks) / smaller,
        utilisation_alike=min(*alike, smaller) / smaller,
        fractional_utilisation=grouped_moments.interval(
            whole.fraction, [w.fraction for w in without], config.confidence, 1.0
        ),
        error=grouped_moments.interval(whole.error, [w.error for w in without], config.confidence),
        parameters=min(ranks) * sum(weight.shape) / weight.numel(),
        caveats=_caveats(n_rows, len(groups), weight, config),
    )
    core = whole.outputs @ weight @ whole.inputs.T
    used = torch.zeros_like(values)
    used[: min(core.shape)] = torch.linalg.svdvals(core)
    found = {"input_basis": whole.inputs, "output_basis": whole.outputs}
    found |= {"singular_value": used, "weight_value": values}
    return result, {name: Array(array.contiguous(), ARRAYS[name]) for name, array in found.items()}


class _Used(NamedTuple):
    """Of some rows."""

    inputs: Float64[Tensor, "component feature"]
    outputs: Float64[Tensor, "component output"]
    fraction: float
    """Utilisation with interpolated ranks."""
    error: float


def _used(state: State, weight: Tensor, config: Config) -> _Used:
    """The outputs are W X with X X^T = V diag(l) V^T, and as good as the columns of W V diag(sqrt l)."""
    found = spectrum.resolve(state, config.precision, center=config.center)
    values = found.values.where(found.values > found.floor, 0.0)
    spread = weight @ found.vectors.T * values.sqrt()
    u, s, _ = torch.linalg.svd(spread, full_matrices=False)
    k, m = energy.components(values, config.energy), energy.components(s.square(), config.energy)
    outputs, left = spectrum.signed(u[:, :m].T.contiguous()), spread.clone()
    left[:, :k] -= outputs.T @ (outputs @ spread[:, :k])
    size = float(torch.linalg.matrix_norm(spread))
    return _Used(
        inputs=found.vectors[:k],
        outputs=outputs,
        fraction=min(energy.fractional(values, config.energy), energy.fractional(s.square(), config.energy))
        / min(weight.shape),
        error=float(torch.linalg.matrix_norm(left)) / size if size > 0 else math.nan,
    )


def _caveats(n_rows: int, groups: int, weight: Tensor, config: Config) -> tuple[str, ...]:
    notes = list(grouped_moments.caveats(groups, config.groups))
    if n_rows < 10 * weight.shape[1]:
        notes.append(
            f"{n_rows} rows for {weight.shape[1]} inputs: few rows show fewer directions than there are, and ranks come out low"
        )
    return tuple(notes)

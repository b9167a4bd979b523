"""A linear layer as the part of its weights that its data use: between the directions of its inputs and those of its outputs.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. With S the fewest principal directions that hold the chosen share
of the inputs' energy and T those of the outputs, the layer is P_T W P_S, two factors of min(k_S, k_T) components:
`spectrum.utilised_rank` as a layer. Energy is taken about the mean where `corrected`, and the bias takes over what the mean input loses.
The share, not a size, says what rank a layer gets; where factors would hold more numbers than the weights they do not pay, and `numbers`
says so.

At the same rank `compression.low_rank` never loses more on the rows that were read: it is the best of any rank for the outputs, and P_S
leaves out what it would keep. `lost_best` is told beside. The paper's threshold and sides were not read: see `spectrum.utilised_rank`.

Arrays are those of `compression.low_rank`, up to the utilised rank: `left` (output, order) and `right` (order, feature), of which the
first r columns and rows are the best part of rank r; `loss` (rank), mean squared error of the outputs at rank 0, 1, ... on the rows that
were read, which ends above 0; `best_loss` (rank) of `compression.low_rank`, `plain_loss` (rank) of the weights' own singular vectors;
`held_out_loss` (rank) on samples without a part in the factors, mean over groups; `mean` (feature) of the inputs.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments, layer_compression
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.methods.layer_compression import parameters
from tasks.numerics import layer_factors
from tasks.numerics.moments import Precision
from tasks.numerics.utilised import Directions, Utilised, directions, losses, utilised

__all__ = ["merge", "parameters", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "left": ("output", "order"),
    "right": ("order", "feature"),
    "loss": ("rank",),
    "best_loss": ("rank",),
    "plain_loss": ("rank",),
    "held_out_loss": ("rank",),
    "mean": ("feature",),
}
REFERENCE = (
    "Revealing the utilized rank of subspaces of learning in neural networks (2024): weights projected on the subspaces where data and "
    "weights interact, here about the mean, with a share of energy as threshold"
)
SEEDS = (55,)


class Config(Frozen):
    """How much of the energy, and which other shares are told of."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the site."""
    energy: float = Field(default=0.99, gt=0, le=1)
    """Share of the inputs' and of the outputs' energy that their directions must hold."""
    corrected: bool = True
    """The bias makes up for what the mean input loses, and energy is about the mean."""
    energies: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Shares for which the result tells ranks and losses beside."""
    groups: int = Field(default=2, ge=2, le=200)
    """Groups that samples are dealt into for held-out losses; each costs a covariance of memory and decompositions."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class AtEnergy(Frozen):
    """What a share of the energy takes and loses. Losses are shares of the outputs' energy."""

    share: float
    """That was asked for."""
    input_rank: int
    """Directions of the inputs that hold it."""
    output_rank: int
    """Directions of the outputs that hold it."""
    rank: int
    """Of the factors: the smaller of both, 1 at least."""
    numbers: float
    """Numbers in the factors over those in the weights; above 1 they do not pay."""
    lost: float
    """On the rows that were read."""
    lost_held_out: float | None
    """On samples that had no part in the factors, which were made of the others with ranks of their own; mean over groups."""
    lost_best: float
    """By `compression.low_rank` at this rank, on the rows that were read."""
    lost_plain: float
    """By the singular value decomposition of the weights alone, at this rank."""


class Result(Frozen):
    """What is used, and what the rest loses."""

    kind: Literal["low_rank"]
    """What stands for the layer."""
    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    """Inputs of the layer."""
    outputs: int
    """Outputs of the layer."""
    corrected: bool
    """Whether the bias takes part."""
    energy: float
    """Mean squared length of the outputs, about their mean where the bias takes part; a bias of the layer's own is left out."""
    made: AtEnergy
    """The layer of the arrays."""
    at: tuple[AtEnergy, ...]
    """For each of the shares that were asked for."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, the groups' covariances take more than 2 GiB, or a
            share is not in (0, 1].
    """
    layer_compression.check_weight(inputs, config.weight)
    grouped_moments.check(inputs.widths["x"], config.groups)
    if not all(0 < share <= 1 for share in config.energies):
        raise MethodError(f"found energies {config.energies}, expected shares above 0, of 1 at most")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Factors of all rows, and losses on groups of factors without them.

    Raises:
        MethodError: without rows, or if a decomposition fails.

    Cost: O(shares groups (width^3 + outputs width min(outputs, width))).
    """
    stored = inputs.weights[config.weight]
    weight = stored.double()
    rows, groups, n_rows = layer_compression.read_of(state, config.corrected)
    here = directions(weight, rows.gram)
    others = [
        (directions(weight, seen.gram), layer_factors.input_root(gram))
        for seen, gram in layer_compression.held_out(groups, config.corrected)
    ]
    plain = layer_factors.losses(layer_factors.factored(weight), here.root)
    parts = {share: _part(weight, here, others, plain, share) for share in (config.energy, *config.energies)}
    made, found = parts[config.energy]
    at = {share: _at(weight, share, *part) for share, part in parts.items()}
    notes = layer_compression.notes_on_losses(n_rows, len(groups), rows.gram)
    if at[config.energy].numbers >= 1:
        notes.append(
            f"factors of rank {at[config.energy].rank} hold no fewer numbers than the weights: they do not pay"
        )
    result = Result(
        kind="low_rank",
        n_rows=n_rows,
        n_groups=len(groups),
        width=weight.shape[1],
        outputs=weight.shape[0],
        corrected=config.corrected,
        energy=float(here.losses[0]),
        made=at[config.energy],
        at=tuple(at[share] for share in config.energies),
        caveats=tuple(notes),
    )
    arrays = layer_compression.arrays_of(made.factors, stored, rows, found)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _part(
    weight: Tensor, here: Directions, others: list[tuple[Directions, Tensor]], plain: Tensor, share: float
) -> tuple[Utilised, dict[str, Tensor | None]]:
    """The layer of a share of the energy, and losses at ranks 0, 1, ... up to its own."""
    made = utilised(weight, here, share)
    n = made.factors.left.shape[1] + 1
    held_out = [
        _of_length(losses(weight, utilised(weight, seen, share).factors, root), n) for seen, root in others
    ]
    return made, {
        "loss": losses(weight, made.factors, here.root),
        "best_loss": here.losses[:n],
        "plain_loss": plain[:n],
        "held_out_loss": layer_compression.mean_of(held_out),
    }


def _of_length(values: Tensor, n: int) -> Tensor:
    """Cut, or the last value again and again: what is there at most."""
    return F.pad(values[None, :n], (0, max(0, n - len(values))), mode="replicate")[0]


def _at(weight: Tensor, share: float, made: Utilised, found: Mapping[str, Tensor | None]) -> AtEnergy:
    rank = made.factors.left.shape[1]
    lost: dict[str, Any] = {
        name: None if values is None else layer_compression.share(values, rank)
        for name, values in found.items()
    }
    return AtEnergy(
        share=share,
        input_rank=made.input_rank,
        output_rank=made.output_rank,
        rank=rank,
        numbers=rank * sum(weight.shape) / weight.numel(),
        lost=lost["loss"],
        lost_held_out=lost["held_out_loss"],
        lost_best=lost["best_loss"],
        lost_plain=lost["plain_loss"],
    )

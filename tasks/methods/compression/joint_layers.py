"""Linear layers of one input, such as query, key and value, as narrow outputs of one shared input map: every rank at once.

Connect the input of one of them, such as `encoder.layer.0.attention.self.query:in:0`. The layers' weights are stacked along their outputs
and factored for the inputs that were read: the best weights of rank r keep the leading principal directions of all outputs together. The
right factor is held once, so that rank r costs r (inputs + all outputs) numbers; factors for each layer stand beside it at equal size. What
is saved is numbers rather than time: each layer that stands for one of them multiplies by the shared factor itself.

How much a shared basis can lose is also bounded without a joint decomposition, beside the truth, and layers are grouped that may share one
within a tolerated error; run the stage again with the `weights` of a group.

Arrays: `left` (output, order), rows of one layer after the other, and `right` (order, feature), of which the first r columns and rows are
the weights of rank r; `squared` (order), mean square of the outputs along each column of `left`: what lies beyond r is lost at rank r on
the rows that were read; `mean` (feature) of the inputs.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import grouped_moments, layer_compression
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.numerics import joint_factors, layer_factors
from tasks.numerics.joint_factors import Factors, lost
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "left": ("output", "order"),
    "right": ("order", "feature"),
    "squared": ("order",),
    "mean": ("feature",),
}
REFERENCE = (
    "Bounds and grouping: Shamrai, Concatenated matrix SVD: compression bounds, incremental approximation, and error-constrained "
    "clustering (2026), restated from its abstract; factors: the leading eigenvectors of the second moment W E[x x'] W' of all outputs"
)
SEEDS = (149,)


class Config(Frozen):
    """Which layers, and what counts as an error."""

    weights: tuple[str, ...] = ("{parent}.query.weight", "{parent}.key.weight", "{parent}.value.weight")
    """The weights of layers that all have the site as their input; `{parent}` is the module that holds the module of the site."""
    corrected: bool = True
    """Biases make up for what the mean input loses."""
    kept: tuple[float, ...] = (0.8, 0.6, 0.4)
    """Shares of the weights' numbers for which the result tells rank and losses."""
    tolerance: float = Field(default=0.05, gt=0, lt=1)
    """The error that layers which share a basis may have together, |y - y'| / |y| of their outputs; it decides about groups."""
    groups: int = Field(default=2, ge=2, le=200)
    """Groups that samples are dealt into for held-out losses; each costs a covariance of memory and a decomposition."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Shared(Frozen):
    """Layers that may share one right factor."""

    weights: tuple[str, ...]
    lost: float
    """Share of their outputs' energy that is lost."""
    bound: float
    """The residual bound of the last layers that came in."""


class AtShare(Frozen):
    """What a share of the numbers loses. All losses are shares of the energy of all outputs, on the rows that were read."""

    kept: float
    """Share of the weights' numbers that was asked for."""
    rank: int
    numbers: int
    """Of the factors; biases are left out everywhere."""
    lost: float
    """With one right factor for all."""
    lost_held_out: float | None
    """The same on samples that had no part in the factors, which were made of the others; mean over groups of samples."""
    lost_of: tuple[float, ...]
    """Of each layer, as a share of its own outputs' energy."""
    lost_apart: float
    """With factors for each layer, each with the same share of its numbers."""
    numbers_apart: int
    lost_dealt: float
    """With factors for each layer, ranks dealt so that least is lost in all within the same numbers."""
    lost_least: float
    """Lower bound of `lost`: what the layers' own bases lose at this rank."""
    residual_bound: float
    """Upper bound of `lost` from what each layer adds to those before."""
    weyl_bound: float
    """Upper bound of `lost` from the largest layer alone."""
    shared: tuple[Shared, ...]
    """Groups of layers of which a basis of that rank keeps within the tolerance, and layers that share with none."""


class Result(Frozen):
    """What sharing loses."""

    kind: Literal["shared_low_rank"]
    """What stands for each of the layers."""
    n_rows: int
    n_groups: int
    """That hold rows."""
    width: int
    """Inputs of the layers."""
    weights: tuple[str, ...]
    """In the order of the rows of `left`."""
    outputs: tuple[int, ...]
    """Of each layer."""
    numbers: int
    """Of all weights."""
    corrected: bool
    """Whether biases take part."""
    energy: float
    """Mean squared length of all outputs, about their mean where biases take part; the layers' own biases are left out."""
    at: tuple[AtShare, ...]
    """For each of the shares that were asked for."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    return config.weights


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for less than two layers or one that is named twice, weights that are no finite linear map of the site's features, or
            groups' covariances of more than 2 GiB.
    """
    if len(set(config.weights)) < max(2, len(config.weights)):
        raise MethodError(
            f"found the weights {', '.join(config.weights) or 'of no layer'}, expected at least two different names; for a single "
            "layer use compression.low_rank"
        )
    for name in config.weights:
        layer_compression.check_weight(inputs, name)
    grouped_moments.check(inputs.widths["x"], config.groups)


class _Layers(NamedTuple):
    """What is the same for every share."""

    weights: tuple[Tensor, ...]
    spread: tuple[Tensor, ...]
    """[output, component] of each layer: its outputs' root, whose squares are the outputs' energy."""
    factors: Factors
    squares: tuple[Tensor, ...]
    """Of each layer's own factors."""
    held_out: Tensor | None

    @property
    def energy(self) -> float:
        return float(sum(float(s.square().sum()) for s in self.spread))


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Factors of all rows, and what they lose.

    Raises:
        MethodError: without rows, or if a decomposition fails.

    Cost: O(groups outputs width min(outputs, width)), and for each share and two of the layers some ten sets of eigenvalues of width.
    """
    stored = torch.cat([inputs.weights[name] for name in config.weights])
    weights = tuple(inputs.weights[name].double() for name in config.weights)
    rows, groups, n_rows = layer_compression.read_of(state, config.corrected)
    root = layer_factors.input_root(rows.gram)
    spread = tuple(weight @ root for weight in weights)
    layers = _Layers(
        weights=weights,
        spread=spread,
        factors=joint_factors.joint_factors(stored.double(), root),
        squares=tuple(torch.linalg.svdvals(s).square() for s in spread),
        held_out=layer_compression.mean_of(_held_out(stored.double(), groups, config)),
    )
    result = Result(
        kind="shared_low_rank",
        n_rows=n_rows,
        n_groups=len(groups),
        width=stored.shape[1],
        weights=config.weights,
        outputs=tuple(len(weight) for weight in weights),
        numbers=stored.numel(),
        corrected=config.corrected,
        energy=layers.energy,
        at=tuple(_at_share(kept, layers, config) for kept in config.kept),
        caveats=(
            *layer_compression.notes_on_losses(n_rows, len(groups), rows.gram),
            *_slower(layers, config),
        ),
    )
    found = layer_factors.Factors(layers.factors.left, layers.factors.right)
    arrays = layer_compression.arrays_of(found, stored, rows, {"squared": layers.factors.squared})
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _at_share(kept: float, layers: _Layers, config: Config) -> AtShare:
    outputs, inputs = sum(map(len, layers.weights)), layers.weights[0].shape[1]
    rank = layer_factors.fitting_rank(kept, outputs, inputs)
    apart = [layer_factors.fitting_rank(kept, len(w), inputs) for w in layers.weights]
    costs = [len(w) + inputs for w in layers.weights]
    dealt = joint_factors.dealt(layers.squares, costs, kept * outputs * inputs)
    held_out = layers.held_out

    def share(loss: float) -> float:
        return loss / layers.energy if layers.energy > 0 else 0.0

    return AtShare(
        kept=kept,
        rank=rank,
        numbers=rank * (outputs + inputs),
        lost=share(float(layers.factors.squared[rank:].sum())),
        lost_held_out=None if held_out is None else _ratio(float(held_out[rank]), float(held_out[0])),
        lost_of=_lost_of(layers, rank),
        lost_apart=share(_lost_apart(layers.squares, apart)),
        numbers_apart=sum(r * cost for r, cost in zip(apart, costs, strict=True)),
        lost_dealt=share(_lost_apart(layers.squares, dealt)),
        lost_least=share(joint_factors.lower_bound(layers.squares, rank)),
        residual_bound=share(joint_factors.residual_bound(layers.spread, rank)),
        weyl_bound=share(joint_factors.weyl_bound(layers.squares, rank)),
        shared=_shared(rank, layers, config),
    )


def _slower(layers: _Layers, config: Config) -> tuple[str, ...]:
    """Each layer multiplies by both factors itself."""
    outputs, inputs = sum(map(len, layers.weights)), layers.weights[0].shape[1]
    ranks = {kept: layer_factors.fitting_rank(kept, outputs, inputs) for kept in config.kept}
    dense = layers.factors.left.shape[0] * inputs
    slow = [kept for kept, r in ranks.items() if r * (len(layers.weights) * inputs + outputs) > dense]
    if not slow:
        return ()
    shares = ", ".join(f"{kept:g}" for kept in slow)
    return (
        f"with a share of {shares} kept, layers that each multiply by the shared factor take more products than the weights themselves",
    )


def _lost_of(layers: _Layers, rank: int) -> tuple[float, ...]:
    """Each layer's rows of the left factor tell what of a component's energy is its own."""
    parts = torch.split(layers.factors.left[:, rank:], [len(w) for w in layers.weights])
    losses = [float((part.square() * layers.factors.squared[rank:]).sum()) for part in parts]
    return tuple(_ratio(a, float(s.square().sum())) for a, s in zip(losses, layers.spread, strict=True))


def _lost_apart(squares: Sequence[Tensor], ranks: Sequence[int]) -> float:
    return sum(joint_factors.at_rank(lost(s), rank) for s, rank in zip(squares, ranks, strict=True))


def _shared(rank: int, layers: _Layers, config: Config) -> tuple[Shared, ...]:
    found = joint_factors.grouped(layers.spread, config.tolerance, rank)
    return tuple(
        Shared(weights=tuple(config.weights[k] for k in g.members), lost=g.error, bound=g.bound)
        for g in found
    )


def _held_out(weight: Tensor, groups: list[State], config: Config) -> list[Tensor]:
    """What factors of all other groups lose on each, whose mean the biases do not know."""
    return [
        layer_factors.losses(
            layer_factors.factored(weight, layer_factors.input_root(seen.gram)),
            layer_factors.input_root(gram),
        )
        for seen, gram in layer_compression.held_out(groups, config.corrected)
    ]


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0

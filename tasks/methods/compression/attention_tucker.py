"""Query, key, value and output of all heads as one Tucker decomposition: four axes, and the core shape that a size buys.

Connect the input of the query, such as `encoder.layer.0.attention.self.query:in:0`. The weights of all heads make a tensor of the network's
features, a head's features, the four layers and the heads. Of all core shapes that a share of the weights' numbers pays for, that with the
least error is taken, and its bases are improved until nothing is gained. Beside it stand what one singular value decomposition of all four
layers and one of each lose at the same size. The decomposition is of the weights alone; what it does to the outputs of query, key and value
is told for the rows that were read, the output layer's inputs are not known here. Where the best core keeps the short axes whole, it is no
more than the decomposition of all layers together: see the figures. Factors made for the inputs are in `compression.joint_layers`.

Arrays: `core` (feature_order, inner_order, layer_order, head_order); `feature_basis`, `inner_basis`, `layer_basis` and `head_basis`,
orthonormal columns for each axis; `mean` (feature) of the inputs.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import layer_compression
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import merge, partial, start, state_config
from tasks.numerics import layer_factors, tucker
from tasks.numerics.moments import Precision

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "core": ("feature_order", "inner_order", "layer_order", "head_order"),
    "feature_basis": ("feature", "feature_order"),
    "inner_basis": ("inner", "inner_order"),
    "layer_basis": ("layer", "layer_order"),
    "head_basis": ("head", "head_order"),
    "mean": ("feature",),
}
REFERENCE = (
    "Gu et al., TensorLLM: tensorising multi-head attention (2025): the tensor and its Tucker decomposition; Ghadiri et al., Approximately "
    "optimal core shapes for tensor decompositions (2023): the shape under a budget, here by trying all but one rank"
)
SEEDS = (100, 157)


class Config(Frozen):
    """Which layers, and how small."""

    weights: tuple[str, str, str, str] = (
        "{parent}.query.weight",
        "{parent}.key.weight",
        "{parent}.value.weight",
        "{grandparent}.output.dense.weight",
    )
    """Of query, key, value and output; `{parent}` is the module that holds the module of the site, `{grandparent}` that which holds it."""
    heads: int = Field(default=12, ge=1)
    """Of the attention; as many of queries as of keys."""
    kept: float = Field(default=0.6, gt=0, le=1)
    """Share of the weights' numbers that core and bases may have."""
    corrected: bool = True
    """Biases of query, key and value make up for what the mean input loses."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Beside(Frozen):
    """What a decomposition of that size loses."""

    numbers: int
    lost: float
    """Share of the squares of all four weights."""
    lost_outputs: float
    """Share of the energy of the outputs of query, key and value on the rows that were read."""


class Result(Frozen):
    """What the decomposition loses."""

    kind: Literal["tucker"]
    """What stands for each of the four layers."""
    n_rows: int
    width: int
    """Features of the network."""
    heads: int
    weights: tuple[str, ...]
    numbers: int
    """Of the four weights; biases are left out everywhere."""
    corrected: bool
    core: tuple[int, int, int, int]
    """Ranks of features, a head's features, layers, heads."""
    tucker: Beside
    bound: float
    """Upper bound of its loss of the weights: the squares of each axis beyond its rank, before bases are improved."""
    lost_unrefined: float
    """Of the weights, before bases are improved."""
    packed_core: tuple[int, int, int, int]
    """The core that is best by that bound rather than by the loss."""
    lost_packed: float
    """Of the weights with that core, before bases are improved."""
    rounds: int
    """In which bases were improved."""
    together: Beside
    """One decomposition of all four weights side by side."""
    apart: Beside
    """One of each weight, of equal ranks."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    return config.weights


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for weights of other shapes than four square ones that the heads divide, such as with fewer heads of keys, weights that
            are not finite, or too few numbers for any core.
    """
    width = inputs.widths["x"]
    for name in config.weights:
        layer_compression.check_weight(inputs, name)
        if inputs.weights[name].shape[0] != width or width % config.heads:
            raise MethodError(
                f"{name} has the shape {tuple(inputs.weights[name].shape)} and there are {config.heads} heads, expected [{width}, {width}] "
                "with a width that the heads divide, for query, key, value and output alike; with fewer heads of keys use "
                "compression.joint_layers"
            )
    tucker.shapes_within(_lengths(width, config.heads), _budget(width, config))


class _Weights(NamedTuple):
    """The four of them, and what query, key and value see."""

    tensor: Tensor
    """[feature, inner, layer, head]."""
    root: Tensor
    """Of the inputs' second moment."""

    @property
    def sides(self) -> Tensor:
        """[feature, (inner, layer, head)]: all four side by side."""
        return self.tensor.flatten(1)

    def beside(self, numbers: int, other: Tensor) -> Beside:
        """What another tensor of that size loses."""
        away = self.tensor - other
        return Beside(
            numbers=numbers,
            lost=_share(away, self.tensor),
            lost_outputs=_share(self._outputs(away), self._outputs(self.tensor)),
        )

    def _outputs(self, tensor: Tensor) -> Tensor:
        return self.root.T @ tensor[:, :, :3].flatten(1)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The decomposition, and what others of its size lose.

    Raises:
        MethodError: without rows, or if a decomposition fails.

    Cost: O(width^3), and for each round and axis some products of all weights with the bases.
    """
    width = inputs.widths["x"]
    rows = layer_compression.rows_of(state, config.corrected)
    weights = _Weights(
        _tensor([inputs.weights[name].double() for name in config.weights], config.heads),
        layer_factors.input_root(rows.gram),
    )
    found, budget = tucker.rotated(weights.tensor), _budget(width, config)
    held, total = found.held(), float(weights.tensor.square().sum())
    core, packed = tucker.best_shape(held, budget), tucker.packed_shape(found.squares, budget)
    best = tucker.refined(weights.tensor, found.cut(core))

    def left(shape: tuple[int, ...]) -> float:
        return 1 - float(held[tuple(rank - 1 for rank in shape)]) / total if total > 0 else 0.0

    n_rows = int(state["n"])
    result = Result(
        kind="tucker",
        n_rows=n_rows,
        width=width,
        heads=config.heads,
        weights=config.weights,
        numbers=weights.tensor.numel(),
        corrected=config.corrected,
        core=_four(core),
        tucker=weights.beside(tucker.numbers(core, weights.tensor.shape), best.tucker.tensor()),
        bound=found.bound(core) / total if total > 0 else 0.0,
        lost_unrefined=left(core),
        packed_core=_four(packed),
        lost_packed=left(packed),
        rounds=len(best.held) - 1,
        together=_together(weights, config.kept),
        apart=_apart(weights, config.kept),
        caveats=_caveats(n_rows, best, width),
    )
    dtype = torch.promote_types(inputs.weights[config.weights[0]].dtype, torch.float32)
    arrays = {"core": best.tucker.core} | dict(zip(list(ARRAYS)[1:5], best.tucker.bases, strict=True))
    arrays = {name: values.to(dtype).contiguous() for name, values in arrays.items()} | {"mean": rows.mean}
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _tensor(weights: list[Tensor], heads: int) -> Tensor:
    """[feature, inner, layer, head]; rows of query, key and value, and columns of the output, are heads of inner features."""
    turned = [*weights[:3], weights[3].T]
    return torch.stack([w.reshape(heads, -1, w.shape[1]) for w in turned]).permute(3, 2, 0, 1).contiguous()


def _lengths(width: int, heads: int) -> tuple[int, int, int, int]:
    return width, width // heads, 4, heads


def _budget(width: int, config: Config) -> int:
    return int(config.kept * 4 * width**2)


def _together(weights: _Weights, kept: float) -> Beside:
    sides = weights.sides
    rank = layer_factors.fitting_rank(kept, *sides.shape)
    u, s, v = torch.linalg.svd(sides, full_matrices=False)
    other = (u[:, :rank] * s[:rank] @ v[:rank]).reshape(weights.tensor.shape)
    return weights.beside(rank * sum(sides.shape), other)


def _apart(weights: _Weights, kept: float) -> Beside:
    width, inner, layers, heads = weights.tensor.shape
    rank = layer_factors.fitting_rank(kept, width, width)
    each = weights.tensor.permute(2, 0, 1, 3).flatten(2)
    u, s, v = torch.linalg.svd(each, full_matrices=False)
    other = (u[..., :rank] * s[:, None, :rank] @ v[:, :rank]).reshape(layers, width, inner, heads)
    return weights.beside(layers * rank * 2 * width, other.permute(1, 2, 0, 3))


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    a, b, c, d = shape
    return a, b, c, d


def _share(part: Tensor, whole: Tensor) -> float:
    below = float(whole.square().sum())
    return float(part.square().sum()) / below if below > 0 else 0.0


def _caveats(n_rows: int, best: tucker.Refined, width: int) -> tuple[str, ...]:
    notes = ["the output layer's own outputs were not looked at: its inputs are at another site"]
    if not best.settled:
        notes.append(
            f"bases were still improving after {len(best.held) - 1} rounds, at the last by "
            f"{best.held[-1] / best.held[-2] - 1:.1e} of the energy"
        )
    if n_rows < 10 * width:
        notes.append(f"{n_rows} rows for {width} inputs: losses of outputs are those of few rows")
    return tuple(notes)

"""How many directions of random subspaces a network needs to be trained as well as in full: the dimension of its objective.

The network is trained from its own weights in random subspaces of several dimensions and with all parameters, by the same full-batch
optimiser. The dimension is the smallest that reaches a given share of what full training reaches, on samples that none has seen, with
the range that their number leaves open. Arrays by subspace: `dimension`, `performance` and `margin` (how far it lies above what had to
be reached) with standard errors; `loss` (subspace, draw) at the end and `history` (step, subspace) in training, `full_history` (step).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import network_products, subspace_training
from tasks.methods.contract import Array, Arrays, BatchesPort, Block, Inputs, State
from tasks.methods.network_products import merge
from tasks.methods.subspace_training import Training
from tasks.numerics.margins import Margin, margins
from tasks.numerics.random_subspace import Kind

__all__ = ["merge"]

VERSION = 1
KIND = "reduce"
READS = {"model": BatchesPort()}
ARRAYS = {
    "dimension": ("subspace",),
    "performance": ("subspace",),
    "performance_error": ("subspace",),
    "margin": ("subspace",),
    "margin_error": ("subspace",),
    "loss": ("subspace", "draw"),
    "history": ("step", "subspace"),
    "full_history": ("step",),
}
REFERENCE = (
    "Li et al.: Measuring the Intrinsic Dimension of Objective Landscapes (2018): d90. Aghajanyan, Gupta, Zettlemoyer: Intrinsic "
    "Dimensionality Explains the Effectiveness of Language Model Fine-Tuning (2021): from pretrained weights, with a scale for each "
    "layer"
)
SEEDS = (48, 225)
MOST_ENTRIES = 2**27
"""Of all dense matrices together."""
LARGEST_DEFAULT = 1000
LATE = 0.1
LEAST = 30
"""Measured samples, below which no range is given."""
ROUNDING = 1e-12


class Config(Frozen):
    """Which subspaces, and how they are trained."""

    dimensions: tuple[int, ...] | None = None
    """Of the subspaces, rising. None: 1, 2, 5, 10, ... up to a quarter of the parameters, 1,000 at most."""
    draws: int = Field(default=1, ge=1, le=8)
    """Subspaces of each dimension. More tell how much the choice of the subspace matters."""
    threshold: float = Field(default=0.9, gt=0, le=1)
    """Share of full training's performance that is to be reached."""
    measure: Literal["accuracy", "loss"] = "accuracy"
    """`accuracy`: share of right targets. `loss`: how much of full training's fall of the loss is reached."""
    holdout: float = Field(default=0.2, ge=0, le=0.9)
    """Share of samples that are measured and not trained on. 0: measured on those that are trained on."""
    steps: int = Field(default=200, ge=1, le=10_000)
    """Of Adam over all samples; each is a pass."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the full training, decaying to 0; those of subspaces are longer, so that weights go equally far in a step."""
    projection: Kind | Literal["auto"] = "auto"
    """`dense` normal matrices, or `fastfood`, which takes little memory. `auto`: dense where it fits."""
    structure_aware: bool = False
    """Also train a scale for each layer, which counts as a dimension."""
    parameters: tuple[str, ...] = ("**",)
    """Globs over parameters; only these are trained."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of subspaces and of the samples held out."""


class Result(Frozen):
    """Dimensions are None where no subspace is known to have them."""

    n_trained: int
    """Samples."""
    n_measured: int
    n_parameters: int
    parameters: tuple[str, ...]
    projection: str
    dimension: int | None
    """The smallest tested one that reaches the target; 0 where the untrained network does."""
    dimension_above: int | None
    """The largest tested one up to which all surely (95 %) fail; 0 is the untrained network. None where none does, or samples are few."""
    dimension_most: int | None
    """The smallest tested one that surely (95 %) reaches it."""
    share: float | None
    """Dimension over parameters."""
    measure: str
    start: float
    """Performance of the untrained network: accuracy, or the loss with a minus."""
    full: float
    """Of full training."""
    target: float
    """What had to be reached."""
    late_fall: float
    """Largest part of a trial's fall of the loss that came in the last half of steps: much says that training was not done."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before any pass.

    Raises:
        MethodError: for a glob that matches no parameter, dimensions that are no such, or matrices that take too much memory.
    """
    _training(inputs.parameters, config)


def start(inputs: Inputs, config: Config) -> State:
    """Nothing trained yet."""
    return subspace_training.start(_training(inputs.parameters, config))


def partial(block: Block, carry: State, config: Config) -> State:
    """Gradients, losses and performance over some samples."""
    if block.network is None or len(block) == 0:
        return subspace_training.empty(carry)
    shapes = {name: tuple(value.shape) for name, value in block.network.parameters.items()}
    return subspace_training.sums(block.network, block.index, carry, _training(shapes, config))


def update(state: State, carry: State, inputs: Inputs, config: Config) -> State | None:
    """A step of every trial, or None after the last."""
    if len(carry["history"]) == config.steps:
        return None
    return subspace_training.advance(state, carry, _training(inputs.parameters, config))


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The dimension, from the performance of the last weights.

    Raises:
        MethodError: if a loss is not finite, or fewer than two samples were left to measure on.
    """
    training = _training(inputs.parameters, config)
    history = subspace_training.recorded(state, carry)["history"].cpu()
    found = _compared(state["moment"].cpu(), training, config)
    by_draw = history[:, :-1].reshape(len(history), training.draws, -1)
    arrays = {
        "dimension": torch.tensor(training.dimensions),
        "performance": found.performance.value[1:],
        "performance_error": found.performance.error[1:],
        "margin": found.margin.value[1:],
        "margin_error": found.margin.error[1:],
        "loss": by_draw[-1].T.contiguous(),
        "history": by_draw.mean(1),
        "full_history": history[:, -1].clone(),
    }
    result = _result(found, history, int(state["trained"]), training, config)
    return result, {name: Array(value, ARRAYS[name]) for name, value in arrays.items()}


def _training(parameters: Mapping[str, tuple[int, ...]], config: Config) -> Training:
    shapes = network_products.chosen(parameters, config.parameters)
    sizes = tuple(torch.Size(shape).numel() for shape in shapes.values())
    layers = subspace_training.layers(tuple(shapes)) if config.structure_aware else ()
    dimensions = _dimensions(sum(sizes), 1 + max(layers, default=-1), config)
    return Training(
        parameters=tuple(shapes),
        sizes=sizes,
        layers=layers,
        dimensions=dimensions,
        draws=config.draws,
        projection=_projection(sum(sizes) * max(dimensions) * config.draws, config),
        accuracy=config.measure == "accuracy",
        holdout=config.holdout,
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )


def _dimensions(entries: int, layers: int, config: Config) -> tuple[int, ...]:
    most = min(max(1, entries // 4), LARGEST_DEFAULT)
    grid = (factor * 10**power for power in range(4) for factor in (1, 2, 5))
    given = config.dimensions
    if given is None:
        given = tuple(d for d in grid if layers < d <= most)
    if not given or any(not layers < d <= entries for d in given) or sorted(set(given)) != list(given):
        raise MethodError(
            f"dimensions {list(given)}: expected rising ones above {layers} (scales of layers) and of at most the "
            f"{entries} parameters"
        )
    return given


def _projection(numbers: int, config: Config) -> Kind:
    if config.projection == "dense" and numbers > MOST_ENTRIES:
        raise MethodError(
            f"dense matrices of {numbers} entries take too much memory (at most {MOST_ENTRIES}); use projection: fastfood"
        )
    if config.projection == "auto":
        return "dense" if numbers <= MOST_ENTRIES else "fastfood"
    return config.projection


class _Compared(NamedTuple):
    """Performance on the measured samples: of the untrained network, then of the subspaces, draws taken together."""

    n: int
    performance: Margin
    margin: Margin
    """How far above what is to be reached."""
    full: float
    target: float


def _compared(moment: Tensor, training: Training, config: Config) -> _Compared:
    scores = len(moment) - 1  # trials by draw and dimension, full training, the untrained network
    single = torch.eye(scores, dtype=torch.float64)
    ours = torch.stack(
        [torch.cat([single[-1:], trials]) for trials in single[:-2].reshape(training.draws, -1, scores)]
    )
    # Of a loss (with a minus) it is the fall that is to be reached, from that of the untrained network.
    target = config.threshold * single[-2] + (0 if training.accuracy else 1 - config.threshold) * single[-1]
    mean = moment[0, 1:] / moment[0, 0]
    return _Compared(
        int(moment[0, 0]),
        margins(moment, ours, torch.zeros_like(target), training.accuracy),
        margins(moment, ours, target, training.accuracy),
        float(mean[-2]),
        float(target @ mean),
    )


def _result(found: _Compared, history: Tensor, n_trained: int, training: Training, config: Config) -> Result:
    tested, start = (0, *training.dimensions), float(found.performance.value[0])
    reached = found.margin.value >= -ROUNDING * abs(found.target)
    known = found.full > start and found.n >= LEAST
    dimension = _first(tested, reached) if found.full > start else None
    above, most = _range(tested, found.margin) if known else (None, None)
    late = _late(history)
    return Result(
        n_trained=n_trained,
        n_measured=found.n,
        n_parameters=training.entries,
        parameters=training.parameters,
        projection=training.projection,
        dimension=dimension,
        dimension_above=above,
        dimension_most=most,
        share=None if dimension is None else dimension / training.entries,
        measure=config.measure,
        start=start,
        full=found.full,
        target=found.target,
        late_fall=late,
        caveats=_caveats(found, dimension, tested, late, config),
    )


def _first(dimensions: tuple[int, ...], which: Tensor) -> int | None:
    return next((d for d, yes in zip(dimensions, which.tolist(), strict=True) if yes), None)


def _range(dimensions: tuple[int, ...], margin: Margin) -> tuple[int | None, int | None]:
    """The last dimension up to which all surely fail, and the first that surely reaches the target."""
    failing = int((margin.high < 0).long().cumprod(0).sum())
    return dimensions[failing - 1] if failing else None, _first(dimensions, margin.low >= 0)


def _late(history: Tensor) -> float:
    """Largest part of a fall of the loss that came in the last half of steps."""
    fall = (history[0] - history[-1]).clamp(min=0)
    late = (history[len(history) // 2] - history[-1]).clamp(min=0)
    return float(torch.where(fall > 0, late / fall, 0).max())


def _caveats(
    found: _Compared, dimension: int | None, tested: tuple[int, ...], late: float, config: Config
) -> tuple[str, ...]:
    worse = found.full <= float(found.performance.value[0])
    back = dimension is not None and bool((found.margin.value[tested.index(dimension) :] < 0).any())
    none = "full training is no better than the untrained network: there is nothing to reach; try more steps or another learning_rate"
    small = "no subspace reaches the target: give larger dimensions"
    idle = "the untrained network reaches the target already"
    slow = f"{late:.0%} of a fall of the loss came in the last half of steps: more steps may give another dimension"
    fall = "a larger subspace does not reach the target that a smaller one reaches: training has not come to its end, or samples are few"
    few = f"{found.n} measured samples are too few for a range: give {LEAST} or more"
    once = (
        "one subspace of each dimension was drawn: how much the choice matters is not in the range; set draws"
    )
    seen = "measured on the samples that were trained on"
    said = (
        (none, worse),
        (small, not worse and dimension is None),
        (idle, dimension == 0),
        (slow, late > LATE),
        (fall, back),
        (few, found.n < LEAST),
        (once, config.draws == 1),
        (seen, not config.holdout),
    )
    return tuple(text for text, holds in said if holds)

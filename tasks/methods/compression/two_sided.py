"""A linear layer as two narrow ones that lose least where the network's loss feels it: from inputs and output gradients together.

Connect the layer's input at x and the gradient at its output at g:
`inputs: {x: {sites: 'encoder.**:in:0'}, g: {sites: 'encoder.**:out:0:grad'}}`.

With G the inputs' second moment and H that of the gradients, the best weights of a rank have the least tr(H (W - W') G (W - W')'): with
inputs and gradients taken as independent, as in K-FAC, the mean squared first-order change that they make in the loss (in the output
itself, where the loss is its product with random vectors: `loss: {kind: projection}`). Times the rows of a sample it is one unit for all
layers of a network, so that ranks can be dealt out between them. `fisher_rows` weighs whole outputs instead, by the squared gradients of
their weights.

Arrays are those of `compression.low_rank`: `left` (output, order), `right` (order, feature), of which the first r columns and rows are the
weights of rank r; `loss` (rank) in the unit of H, on the rows that were read, `held_out_loss` (rank) on samples without a part in the
factors; `plain_loss` (rank) of the weights' own singular vectors, `output_loss` (rank) the mean squared error of the outputs; `mean`
(feature); `sensitivity` (output), the diagonal of H: what errors of outputs that do not go together, as those of rounded weights, cost.
"""

from functools import reduce
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import grouped_moments, layer_compression
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.methods.layer_compression import AtRank, parameters
from tasks.numerics import layer_factors, moments, spectrum
from tasks.numerics.layer_factors import Factors, Roots
from tasks.numerics.moments import Precision
from tasks.numerics.split import spread

__all__ = ["parameters"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort(), "g": RowsPort()}
ARRAYS = {
    "left": ("output", "order"),
    "right": ("order", "feature"),
    "loss": ("rank",),
    "plain_loss": ("rank",),
    "held_out_loss": ("rank",),
    "output_loss": ("rank",),
    "mean": ("feature",),
    "sensitivity": ("output",),
}
REFERENCE = (
    "Two-sided metric: Kronecker-factored Fisher information (Martens, Grosse, ICML 2015) around a low-rank change of weights. "
    "`fisher_rows`: Hsu, Hua, Chang, Lou, Shen, Jin, language model compression with weighted low-rank factorization, ICLR 2022: rows "
    "weighed by summed squared gradients, here of each row of activations rather than of each sample"
)
SEEDS = (51,)


class Config(Frozen):
    """What counts as an error, and which ranks are shown."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the sites."""
    metric: Literal["two_sided", "fisher_rows"] = "two_sided"
    """`fisher_rows` has no part for inputs: outputs are weighed by the Fisher information of their rows of weights."""
    damping: float = Field(default=0.01, ge=0)
    """Added to every eigenvalue of the gradients' second moment, over their mean: outputs that no gradient saw count a little."""
    corrected: bool = True
    """The bias makes up for what the mean input loses."""
    kept: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4)
    """Shares of the weight's numbers for which the result tells rank and loss."""
    groups: int = Field(default=2, ge=2, le=200)
    """Groups that samples are dealt into for held-out losses; each costs two covariances of memory and two decompositions."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What ranks lose."""

    kind: Literal["low_rank"]
    """What stands for the layer."""
    n_rows: int
    """Joined rows."""
    n_groups: int
    """That hold rows."""
    width: int
    """Inputs of the layer."""
    outputs: int
    """Outputs of the layer."""
    corrected: bool
    """Whether the bias takes part."""
    one_unit: bool
    """Losses times rows may be added up over the layers of a network."""
    energy: float
    """tr(H W G W'), of which losses are shares: what rank 0 would lose."""
    bytes_before: int
    """Of the weights as the network has them."""
    gradient_participation: float
    """Directions of the gradients, by the participation ratio."""
    at: tuple[AtRank, ...]
    """For each of the shares that were asked for; losses are shares of `energy`."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, the gradients are another layer's, or the groups'
            covariances take more than 2 GiB.
    """
    layer_compression.check_weight(inputs, config.weight)
    layer_compression.check_gradients(inputs, config.weight)
    for width in inputs.widths.values():
        grouped_moments.check(width, config.groups)


def state_config(config: Config) -> dict[str, object]:
    """What the state depends on."""
    return grouped_moments.state_config(config)


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried from round to round."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """Moments of each group's inputs and gradients, and sums of squared gradients of rows of weights.

    Raises:
        MethodError: for rows or weights that are not finite.
    """
    sides = {side: grouped_moments.partial(block[side], block, config) for side in ("x", "g")}
    size = block["x"].double().square().sum(1)
    size = size if block.weight is None else size * block.weight
    squares = block["g"].double().square() * size[:, None]
    fisher = squares.new_zeros(config.groups, squares.shape[1])
    return _named(sides) | {"fisher": fisher.index_add_(0, spread(block.sample, config.groups), squares)}


def merge(a: State, b: State) -> State:
    """Of both sets of rows, group by group."""
    pairs = zip(_each(a), _each(b), strict=True)
    merged = [_both(*pair) for pair in pairs]
    return {name: torch.stack([one[name] for one in merged]) for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Factors of all rows, and losses on groups of factors without them.

    Raises:
        MethodError: without rows, or if a decomposition fails.

    Cost: O(groups (outputs^3 + outputs width min(outputs, width))).
    """
    stored = inputs.weights[config.weight]
    weight = stored.double()
    groups = [group for group in _each(state) if int(group["x.n"])]
    total = reduce(_both, _each(state))
    rows = layer_compression.rows_of(_side(total, "x"), config.corrected)
    root, roots = layer_factors.input_root(rows.gram), _roots(total, config)
    factors = _factors(weight, total, config)
    loss = layer_factors.losses(factors, root, roots)
    found = {
        "loss": loss,
        "plain_loss": layer_factors.losses(layer_factors.factored(weight), root, roots),
        "held_out_loss": layer_compression.mean_of(_held_out(weight, groups, config)),
        "output_loss": layer_factors.losses(factors, root),
    }
    values = torch.linalg.eigvalsh(layer_compression.rows_of(_side(total, "g"), False).gram).clamp(min=0)
    result = Result(
        kind="low_rank",
        n_rows=sum(int(group["x.n"]) for group in groups),
        n_groups=len(groups),
        width=weight.shape[1],
        outputs=weight.shape[0],
        corrected=config.corrected,
        one_unit=True,
        energy=float(loss[0]),
        bytes_before=stored.numel() * stored.element_size(),
        gradient_participation=spectrum.participation_ratio(values) if float(values.sum()) > 0 else 0.0,
        at=tuple(layer_compression.at_rank(kept, weight, found) for kept in config.kept),
        caveats=tuple(
            layer_compression.notes_on_losses(sum(int(g["x.n"]) for g in groups), len(groups), rows.gram)
        )
        + (() if float(values.sum()) > 0 else ("all gradients are zero: outputs count alike",)),
    )
    arrays = layer_compression.arrays_of(factors, stored, rows, found)
    arrays["sensitivity"] = roots.root.square().sum(1)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _roots(group: State, config: Config) -> Roots:
    """Of the metric in which losses are told."""
    gram = layer_compression.rows_of(_side(group, "g"), False).gram
    return layer_factors.output_roots(gram, config.damping)


def _factors(weight: Tensor, group: State, config: Config) -> Factors:
    if config.metric == "fisher_rows":
        return layer_factors.factored(weight, None, layer_factors.output_roots(group["fisher"].diag(), 0.0))
    rows = layer_compression.rows_of(_side(group, "x"), config.corrected)
    return layer_factors.factored(weight, layer_factors.input_root(rows.gram), _roots(group, config))


def _held_out(weight: Tensor, groups: list[State], config: Config) -> list[Tensor]:
    """What factors of all other groups lose on each."""
    if len(groups) < 2:
        return []
    found = []
    for group, rest in zip(groups, grouped_moments.leaving_out(groups, _both), strict=True):
        mean = moments.mean(_side(rest, "x"))
        point = mean if config.corrected else torch.zeros_like(mean)
        root = layer_factors.input_root(layer_compression.gram_about(_side(group, "x"), point))
        found.append(layer_factors.losses(_factors(weight, rest, config), root, _roots(group, config)))
    return found


def _both(a: State, b: State) -> State:
    """Of two groups, or of a group's rows."""
    sides = {side: moments.merge(_side(a, side), _side(b, side)) for side in ("x", "g")}
    return _named(sides) | {"fisher": a["fisher"] + b["fisher"]}


def _each(state: State) -> list[State]:
    return [{name: values[g] for name, values in state.items()} for g in range(len(state["fisher"]))]


def _named(sides: dict[str, State]) -> State:
    return {f"{side}.{name}": values for side, state in sides.items() for name, values in state.items()}


def _side(state: State, side: str) -> State:
    return {name[2:]: values for name, values in state.items() if name.startswith(f"{side}.")}

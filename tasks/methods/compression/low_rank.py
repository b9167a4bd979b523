"""A linear layer as two narrow ones: factors of its weights that lose least of its outputs, for every rank at once.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. The best weights of rank r, for the inputs that were read, keep the
outputs' r leading principal directions; nothing of the inputs is inverted. With `corrected` the bias takes over what the mean input loses,
so that ranks are spent on what varies.

Arrays: `left` (output, order) and `right` (order, feature), of which the first r columns and rows are the weights of rank r; `loss` (rank),
mean squared error of the outputs at rank 0, 1, ... on the rows that were read, `plain_loss` (rank) the same of the weights' own singular
vectors, `held_out_loss` (rank) on samples without a part in the factors, mean over groups; `mean` (feature) of the inputs.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import grouped_moments, layer_compression
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.methods.layer_compression import AtRank, Rows, parameters
from tasks.numerics import layer_factors, spectrum
from tasks.numerics.layer_factors import Factors
from tasks.numerics.moments import Precision

__all__ = ["merge", "parameters", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "left": ("output", "order"),
    "right": ("order", "feature"),
    "loss": ("rank",),
    "plain_loss": ("rank",),
    "held_out_loss": ("rank",),
    "mean": ("feature",),
}
REFERENCE = (
    "Whitened singular value decomposition (Wang, Zheng, Wan, Zhang, SVD-LLM, ICLR 2025, section 3.1) without whitening: its optimum "
    "keeps the leading eigenvectors of the outputs' second moment W E[x x'] W'. Input scales: Yuan et al., ASVD (2023), with root mean "
    "squares for mean sizes and exponent 1"
)
SEEDS = ()


class Config(Frozen):
    """What counts as an error, and which ranks are shown."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the site."""
    metric: Literal["outputs", "scales", "weights"] = "outputs"
    """What factors are best for: the outputs on these rows; weights times the root mean square of each input (where the mean is corrected,
    its standard deviation); the weights alone. Losses are always those of outputs."""
    corrected: bool = True
    """The bias makes up for what the mean input loses."""
    kept: tuple[float, ...] = (0.8, 0.6, 0.5, 0.4)
    """Shares of the weight's numbers for which the result tells rank and loss."""
    groups: int = Field(default=2, ge=2, le=200)
    """Groups that samples are dealt into for held-out losses; each costs a covariance of memory and a decomposition."""
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
    participation: float
    """Directions of the outputs, by the participation ratio."""
    effective_rank: float
    """The same by the entropy of their shares."""
    at: tuple[AtRank, ...]
    """For each of the shares that were asked for."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, or the groups' covariances take more than 2 GiB.
    """
    layer_compression.check_weight(inputs, config.weight)
    grouped_moments.check(inputs.widths["x"], config.groups)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Factors of all rows, and losses on groups of factors without them.

    Raises:
        MethodError: without rows, or if a decomposition fails.

    Cost: O(groups outputs width min(outputs, width)).
    """
    stored = inputs.weights[config.weight]
    weight = stored.double()
    rows, groups, n_rows = layer_compression.read_of(state, config.corrected)
    root = layer_factors.input_root(rows.gram)
    factors = _factors(weight, rows, config)
    found = {
        "loss": layer_factors.losses(factors, root),
        "plain_loss": layer_factors.losses(layer_factors.factored(weight), root),
        "held_out_loss": layer_compression.mean_of(
            [
                layer_factors.losses(_factors(weight, seen, config), layer_factors.input_root(gram))
                for seen, gram in layer_compression.held_out(groups, config.corrected)
            ]
        ),
    }
    values = torch.linalg.svdvals(weight @ root).square()
    there = bool(values.sum() > 0)
    result = Result(
        kind="low_rank",
        n_rows=n_rows,
        n_groups=len(groups),
        width=weight.shape[1],
        outputs=weight.shape[0],
        corrected=config.corrected,
        energy=float(values.sum()),
        participation=spectrum.participation_ratio(values) if there else 0.0,
        effective_rank=spectrum.effective_rank(values) if there else 0.0,
        at=tuple(layer_compression.at_rank(kept, weight, found) for kept in config.kept),
        caveats=tuple(layer_compression.notes_on_losses(n_rows, len(groups), rows.gram)),
    )
    arrays = layer_compression.arrays_of(factors, stored, rows, found)
    return result, {name: Array(values, ARRAYS[name]) for name, values in arrays.items()}


def _factors(weight: Tensor, rows: Rows, config: Config) -> Factors:
    if config.metric == "weights":
        return layer_factors.factored(weight)
    if config.metric == "scales":
        return layer_factors.factored(weight, rows.gram.diagonal().sqrt().diag())
    return layer_factors.factored(weight, layer_factors.input_root(rows.gram))

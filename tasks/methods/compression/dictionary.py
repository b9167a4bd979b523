"""Weights of a linear layer as a dictionary of directions of its inputs, of which every output takes a few.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. Outputs that may choose among twice as many directions as they
take are nearer to the layer's than those of a product of two narrow layers with as many numbers: the result has the loss of the best such
product beside it. `orthogonal` has orthonormal directions in the space where inputs are white; its loss never grows from step to step,
which is checked. `free` goes on from there with directions at any angles: slower, and somewhat nearer. The whole is not convex: another
start may end elsewhere. Losses are those of the rows that were read, exactly, from their second moment, and of samples
without a part in the weights, by groups.

The published free form chooses its directions one after the other by K-SVD; here all are chosen at once by least squares (method of
optimal directions). Arrays: `dictionary`, `value` and `index`: weights^T ~ dictionary S, where output j has `value[j]` at the atoms
`index[j]`, ascending; `step_loss`, the share of the energy that each step loses, with second moments below 1e-9 of their mean raised to
that; `mean` of the inputs; `output_error`, the mean squared error of each output on the rows that were read.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.compressed.bits import row_bytes
from tasks.methods import grouped_moments, layer_compression
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.methods.layer_compression import parameters
from tasks.numerics import layer_factors, sparse_dictionary
from tasks.numerics.layer_error import lost_share, output_energy, output_errors
from tasks.numerics.moments import Precision
from tasks.numerics.sparse_dictionary import Sparse

__all__ = ["merge", "parameters", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "dictionary": ("input", "atom"),
    "value": ("output", "entry"),
    "index": ("output", "entry"),
    "step_loss": ("step",),
    "mean": ("input",),
    "output_error": ("output",),
}
REFERENCE = (
    "COMPOT (orthogonal: Procrustes and hard thresholds in turn) and CoSpaDi: compressing LLMs via calibration-guided sparse dictionary "
    "learning (2025; free); pursuit: Rubinstein, Zibulevsky, Elad 2008; method of optimal directions: Engan, Aase, Husoy 1999"
)
SEEDS = (126,)


class Config(Frozen):
    """How large, and how the dictionary is chosen."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the site."""
    kept: float = Field(default=0.6, gt=0, lt=1)
    """Share of the weights' numbers that dictionary and entries may have; a bit that tells where an entry is counts as a sixteenth."""
    form: Literal["orthogonal", "free"] = "orthogonal"
    """Orthonormal directions, or directions at any angles, which take many times as long."""
    iterations: int = Field(default=20, ge=1)
    """Choices of the dictionary; for `free` as many more."""
    corrected: bool = True
    """The bias makes up for what the mean input loses."""
    groups: int = Field(default=2, ge=2, le=200)
    """Groups that samples are dealt into for the held-out loss; each costs a covariance of memory, and the whole work once more."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    kind: Literal["sparse_dictionary"]
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
    atoms: int
    entries: int
    """Atoms that an output takes."""
    energy: float
    """Mean squared length of the outputs, about their mean where the bias takes part; a bias of the layer's own is left out."""
    lost: float
    """Share of the outputs' energy that is lost on the rows that were read."""
    lost_held_out: float | None
    """The same on samples that had no part in the weights, which were made of the others; over groups of samples."""
    lost_low_rank: float
    """The same of the best product of two narrow matrices that costs no more."""
    low_rank: int
    """The rank of that product."""
    parameters_before: int
    parameters_after: int
    """In dictionary and entries."""
    bytes_before: int
    """Of the weights as the network has them."""
    bytes_after: int
    """Of dictionary and entries in the same dtype, and of the bits that tell where entries are."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, the groups' covariances take more than 2 GiB, or
            `kept` pays for nothing.
    """
    layer_compression.check_weight(inputs, config.weight)
    grouped_moments.check(inputs.widths["x"], config.groups)
    sparse_dictionary.sizes(inputs.widths["x"], len(inputs.weights[config.weight]), config.kept)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Dictionary and entries, and what they do to the outputs.

    Raises:
        MethodError: for no rows, outputs that do not vary, or if a decomposition fails.

    Cost: groups times O(width^3) and that of `sparse_dictionary.orthogonal` or `free`.
    """
    stored = inputs.weights[config.weight]
    rows, groups, n_rows = layer_compression.read_of(state, config.corrected)
    weight = stored.double()
    energy = output_energy(weight, rows.gram)
    if not energy > 0 or n_rows <= config.corrected:
        raise MethodError(
            f"no output of {config.weight} varies in the {n_rows} rows that were read, so that no weights are better than others; "
            "read more rows, or leave the layer out"
        )
    size = sparse_dictionary.sizes(weight.shape[1], len(weight), config.kept)

    def made(gram: Tensor) -> Sparse:
        return sparse_dictionary.of_weight(weight, gram, size, config.iterations, config.form)

    found, rank = made(rows.gram), layer_factors.fitting_rank(config.kept, *weight.shape)
    root = layer_factors.input_root(rows.gram)
    narrow = layer_factors.losses(layer_factors.factored(weight, root), root)
    result = Result(
        kind="sparse_dictionary",
        n_rows=n_rows,
        n_groups=len(groups),
        width=weight.shape[1],
        outputs=len(weight),
        corrected=config.corrected,
        atoms=size.atoms,
        entries=size.entries,
        energy=energy,
        lost=lost_share(weight, found.product().T, rows.gram),
        lost_held_out=layer_compression.lost_held_out(
            weight, groups, config.corrected, lambda gram: made(gram).product().T
        ),
        lost_low_rank=float(narrow[rank]) / energy,
        low_rank=rank,
        parameters_before=weight.numel(),
        parameters_after=found.dictionary.numel() + found.value.numel(),
        bytes_before=stored.numel() * stored.element_size(),
        bytes_after=_bytes(found, stored.element_size()),
        caveats=tuple(layer_compression.notes_on_losses(n_rows, len(groups), rows.gram)),
    )
    arrays = {
        "dictionary": found.dictionary,
        "value": found.value,
        "index": found.atom,
        "step_loss": found.losses,
        "mean": rows.mean,
        "output_error": output_errors(weight, found.product().T, rows.gram),
    }
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}


def _bytes(found: Sparse, each: int) -> int:
    """In numbers of so many bytes."""
    outputs, atoms = len(found.value), found.dictionary.shape[1]
    return (found.dictionary.numel() + found.value.numel()) * each + outputs * row_bytes(atoms, 1)

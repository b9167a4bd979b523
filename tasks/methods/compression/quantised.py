"""Weights of a linear layer in a few bits, rounded so that its outputs change least, beside plain rounding.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. Every row of the weights [out, in], or every group of inputs of a
row, gets a step and a zero; a weight is step (code - zero). `gptq` rounds one input after the other, and lets the inputs after it make up
for what was lost, as the second moment of the inputs tells; where that comes out worse than rounding to the nearest, the nearest codes
are kept, and the result says so. Losses are those of the rows that were read, exactly, from their second moment, and of
samples without a part in the weights, by groups. Weights of inputs that never varied are rounded to the nearest.

Arrays: `code` (uint8, one for each weight, not packed: the compressed layer packs them), `step` (numbers that float16 holds, where it
has normal ones of that size) and `zero`; `mean` of the inputs; `output_error`, the mean squared error of each output on those rows.
"""

import math
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.compressed.codes import Codes
from tasks.methods import grouped_moments, layer_compression
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.groups_state import merge, partial, start, state_config
from tasks.methods.layer_compression import parameters
from tasks.numerics.gptq import gptq
from tasks.numerics.layer_error import lost_share, output_energy, output_errors
from tasks.numerics.moments import Precision
from tasks.numerics.weight_codes import Coded, rounded

__all__ = ["merge", "parameters", "partial", "start", "state_config"]

VERSION = 2
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {
    "code": ("output", "input"),
    "step": ("output", "group"),
    "zero": ("output", "group"),
    "mean": ("input",),
    "output_error": ("output",),
}
REFERENCE = (
    "Frantar, Ashkboos, Hoefler, Alistarh 2022, GPTQ: accurate post-training quantization for generative pre-trained transformers, "
    "algorithm 1; without it, rounding to the nearest"
)
SEEDS = ()


class Config(Frozen):
    """How many bits, and how they are chosen."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the site."""
    bits: int = Field(default=4, ge=2, le=8)
    """Of a weight."""
    group: int | None = Field(default=64, ge=1)
    """Inputs that share a step; None, or more than there are: whole rows. Steps take 16 bits each, zeros 8 where they are stored."""
    rounding: Literal["nearest", "gptq"] = "gptq"
    """Each weight by itself, or with regard to the inputs' second moment."""
    symmetric: bool = True
    """A range about zero, which needs no zeros stored; else that of the values."""
    clip: bool = True
    """Narrow the range of a group where that makes the squared error of its weights smaller; few bits gain most."""
    corrected: bool = True
    """The bias makes up for what the mean input loses."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the mean second moment of an input that is added to each; `gptq` alone."""
    by_energy: bool = True
    """Round inputs of large second moment first, in steps of the weights as given, which is better as a rule; else in
    their order, in steps of the weights as they stand; `gptq` alone."""
    groups: int = Field(default=2, ge=2, le=200)
    """Groups that samples are dealt into for the held-out loss; each costs a covariance of memory, and the whole work once more."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    kind: Literal["quantised"]
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
    bits: int
    group: int
    """Inputs that share a step."""
    symmetric: bool
    rounding: Literal["nearest", "gptq"]
    """Whose codes were kept."""
    energy: float
    """Mean squared length of the outputs, about their mean where the bias takes part; a bias of the layer's own is left out."""
    lost: float
    """Share of the outputs' energy that is lost on the rows that were read."""
    lost_held_out: float | None
    """The same on samples that had no part in the weights, which were made of the others; over groups of samples."""
    lost_nearest: float
    """The same of weights rounded to the nearest, in ranges chosen alike."""
    parameters: int
    """Weights, each of which has a code."""
    bytes_before: int
    """Of the weights as the network has them."""
    bytes_after: int
    """Of packed codes, steps and zeros."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, or the groups' covariances take more than 2 GiB.
    """
    layer_compression.check_weight(inputs, config.weight)
    grouped_moments.check(inputs.widths["x"], config.groups)


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Codes, and what they do to the outputs.

    Raises:
        MethodError: for no rows, or a second moment that is singular with this damping.

    Cost: O(groups (width^3 + outputs width^2)).
    """
    stored = inputs.weights[config.weight]
    rows, groups, n_rows = layer_compression.read_of(state, config.corrected)
    weight = stored.double()
    near = rounded(weight, config.bits, config.group, config.symmetric, config.clip)
    found = _coded(weight, rows.gram, near, config)
    notes = layer_compression.notes_on_losses(n_rows, len(groups), rows.gram)
    if found.lost_nearest < found.lost_gptq < math.inf:
        notes.append(f"gptq lost {found.lost_gptq:.3g} of the energy: the nearest codes were kept")
    result = Result(
        kind="quantised",
        n_rows=n_rows,
        n_groups=len(groups),
        width=weight.shape[1],
        outputs=weight.shape[0],
        corrected=config.corrected,
        bits=config.bits,
        group=near.group,
        symmetric=config.symmetric,
        rounding="nearest" if found.coded is near else "gptq",
        energy=output_energy(weight, rows.gram),
        lost=min(found.lost_gptq, found.lost_nearest),
        lost_held_out=layer_compression.lost_held_out(
            weight, groups, config.corrected, lambda gram: _coded(weight, gram, near, config).coded.weight()
        ),
        lost_nearest=found.lost_nearest,
        parameters=weight.numel(),
        bytes_before=stored.numel() * stored.element_size(),
        bytes_after=_bytes(found.coded, config),
        caveats=tuple(notes),
    )
    coded = found.coded
    errors = output_errors(weight, coded.weight(), rows.gram)
    arrays = {
        "code": coded.code,
        "step": coded.step,
        "zero": coded.zero,
        "mean": rows.mean,
        "output_error": errors,
    }
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}


class _Found(NamedTuple):
    """The codes that lose less."""

    coded: Coded
    lost_nearest: float
    lost_gptq: float
    """Infinite where it was not asked for, or nothing can be lost."""


def _coded(weight: Tensor, gram: Tensor, near: Coded, config: Config) -> _Found:
    lost = lost_share(weight, near.weight(), gram)
    if config.rounding == "nearest" or not lost > 0:
        return _Found(near, lost, math.inf)
    made = gptq(
        weight,
        gram,
        config.bits,
        config.group,
        config.symmetric,
        config.damping,
        config.by_energy,
        config.clip,
    )
    lost_gptq = lost_share(weight, made.weight(), gram)
    return _Found(made if lost_gptq <= lost else near, lost, lost_gptq)


def _bytes(coded: Coded, config: Config) -> int:
    """Of the layer's tensors without its bias."""
    zero = None if config.symmetric else coded.zero
    tensors = Codes.of(coded.code, coded.step, zero, config.bits, coded.group).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""Weights of a linear layer in a few bits, rounded so that its outputs change least, beside plain rounding.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. Every row of the weights [out, in], or every group of inputs of a
row, gets a step and a zero; a weight is step (code - zero). `gptq` rounds one input after the other, and lets the inputs after it make up
for what was lost, as the second moment of the inputs tells; where that comes out worse than rounding to the nearest, the nearest codes
are kept, and the result says so. Errors are those of the rows that were read, exactly, from their second moment; other rows were not
looked at. Inputs that were always zero are rounded to the nearest. The bias stays as it is.

Arrays: `code` (uint8, one for each weight, not packed: the compressed layer packs them), `step` (numbers that float16 holds, where it
has normal ones of that size) and `zero`.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.compressed.codes import Codes
from tasks.compressed.quantised import QuantisedLinear
from tasks.methods.contract import Array, Arrays, Inputs, RowsPort, State
from tasks.methods.moments_state import merge, partial, start, state_config
from tasks.numerics import moments
from tasks.numerics.gptq import gptq
from tasks.numerics.layer_error import relative_error
from tasks.numerics.moments import Precision
from tasks.numerics.weight_codes import Coded, rounded

__all__ = ["merge", "partial", "start", "state_config"]

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"code": ("output", "input"), "step": ("output", "group"), "zero": ("output", "group")}
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
    damping: float = Field(default=0.01, gt=0)
    """Share of the mean second moment of an input that is added to each; `gptq` alone."""
    by_energy: bool = True
    """Round inputs of large second moment first, in steps of the weights as given, which is better as a rule; else in
    their order, in steps of the weights as they stand; `gptq` alone."""
    precision: Precision = "float64"
    """Of the products of features: float64 is exact; float32 is twice as fast, with errors below 1e-7 of the
    largest eigenvalue."""
    weight_label: str | None = None
    """The label (2.0 rather than 2, not negative) of samples that weighs their rows; None: every row counts once."""


class Result(Frozen):
    """What was found."""

    kind: str
    """The layer that it makes."""
    n_rows: int
    width: int
    """Inputs of the layer."""
    outputs: int
    """Outputs of the layer."""
    bits: int
    group: int
    """Inputs that share a step."""
    symmetric: bool
    rounding: Literal["nearest", "gptq"]
    """Whose codes were kept."""
    error: float | None
    """|W X - W' X| / |W X| over the rows that were read; None where all outputs are zero."""
    nearest_error: float | None
    """The same of weights rounded to the nearest, in ranges chosen alike."""
    parameters: int
    """Weights, each of which has a code."""
    bytes_before: int
    """Of the weights as the network has them."""
    bytes_after: int
    """Of packed codes, steps and zeros."""
    caveats: tuple[str, ...]


def parameters(config: Config) -> tuple[str, ...]:
    """What is read of the network."""
    return (config.weight,)


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features.
    """
    width = inputs.widths["x"]
    weight = inputs.weights[config.weight]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise MethodError(
            f"{config.weight} has the shape {tuple(weight.shape)}, expected [outputs, {width}] for the {width} features of the site; "
            "connect the input of a linear layer, such as encoder.layer.0.output.dense:in:0"
        )
    if not bool(weight.isfinite().all()):
        raise MethodError(f"{config.weight} holds NaN or infinity; load another checkpoint")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Codes, and what they do to the outputs.

    Raises:
        MethodError: for no rows, or a second moment that is singular with this damping.

    Cost: O(width^3 + outputs width^2).
    """
    stored = inputs.weights[config.weight]
    weight, second = stored.double(), moments.covariance(state, center=False)
    near = rounded(weight, config.bits, config.group, config.symmetric, config.clip)
    near_error = relative_error(weight, near.weight(), second)
    coded, error, notes = near, near_error, _notes(int(state["n"]), second)
    if config.rounding == "gptq" and near_error is not None:
        found = gptq(
            weight, second, config.bits, config.group, config.symmetric, config.damping, config.by_energy
        )
        found_error = relative_error(weight, found.weight(), second)
        if found_error is not None and found_error <= near_error:
            coded, error = found, found_error
        else:
            notes.append(f"gptq had an error of {found_error:.3g}: the nearest codes were kept")
    result = Result(
        kind=QuantisedLinear.kind,
        n_rows=int(state["n"]),
        width=weight.shape[1],
        outputs=weight.shape[0],
        bits=config.bits,
        group=coded.group,
        symmetric=config.symmetric,
        rounding="nearest" if coded is near else "gptq",
        error=error,
        nearest_error=near_error,
        parameters=weight.numel(),
        bytes_before=stored.numel() * stored.element_size(),
        bytes_after=_bytes(coded, config),
        caveats=tuple(notes),
    )
    found_arrays = {"code": coded.code, "step": coded.step, "zero": coded.zero}
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in found_arrays.items()}


def _bytes(coded: Coded, config: Config) -> int:
    """Of the layer's tensors without its bias."""
    zero = None if config.symmetric else coded.zero
    tensors = Codes.of(coded.code, coded.step, zero, config.bits, coded.group).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _notes(n_rows: int, second: Tensor) -> list[str]:
    width, notes = (
        len(second),
        ["the errors are those of the rows that were read; other rows were not looked at"],
    )
    dead = int((second.diagonal() == 0).sum())
    if dead:
        notes.append(f"{dead} of {width} inputs were always zero: nothing tells how their weights matter")
    if n_rows < 10 * width and n_rows:
        notes.append(
            f"{n_rows} rows for {width} inputs: on other rows the gain over the nearest codes is smaller than here"
        )
    return notes

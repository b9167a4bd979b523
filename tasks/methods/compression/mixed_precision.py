"""Inputs and weights of a linear layer in few bits, and in more bits along the directions that hold most of the inputs' energy.

Connect the layer's input, such as `encoder.layer.0.output.dense:in:0`. Inputs are turned so that some of them are the leading principal
directions of their second moment, and turned once more at random inside of these and of the others, which spreads outliers. Leading ones
are rounded to 8 bits and the others to 4, inputs row by row about a zero of their own, weights by output (GPTQ, or to the nearest: the
parts have no products in the second moment, so that each can be rounded alone). Rounded inputs are simulated in floating arithmetic:
results are those of whole numbers, times are not.

What is exact: `lost_weights`, of rounded weights and inputs as they are, over the rows that made the layer. What rounded inputs lose is
measured on samples that had no part in the layer, beside the same bits without the split, and without any rotation. One draw of the random
rotations, `seed`: another gives another loss. The rotation is the layer's own; its bytes are told apart, as a network in which the layer
before can take it over saves them.

Arrays: `rotation` (columns: leading directions first), `code` and `step` (of high and low part) of the rotated weights, which are
step (code - 2^(bits - 1)).
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.compressed.bits import row_bytes
from tasks.compressed.mixed_precision import rounded_rows
from tasks.methods import layer_compression
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.methods.layer_compression import parameters
from tasks.numerics.gptq import gptq
from tasks.numerics.layer_error import lost_share, output_energy
from tasks.numerics.residual_rotation import Rotation, rotation
from tasks.numerics.split import held_out
from tasks.numerics.weight_codes import Coded, rounded

__all__ = ["parameters"]

VERSION = 1
KIND = "whole"
READS = {"x": RowsPort()}
ARRAYS = {"rotation": ("input", "component"), "code": ("output", "component"), "step": ("output", "part")}
REFERENCE = (
    "Saxena, Sharify, Roy, Wang 2024, ResQ: mixed-precision quantization of large language models with low-rank residuals, section 3: "
    "split, rotations and bits of one layer's inputs and weights, without keys, values and folding"
)
SEEDS = (101,)


NOTHING = 1e-12
"""Energy of a part, over all, below which it is rounding."""


class Config(Frozen):
    """How many directions, in how many bits."""

    weight: str = "{module}.weight"
    """The layer's weights; `{module}` is the module of the site."""
    share: float = Field(default=0.125, gt=0, lt=1)
    """Of the inputs, in the high part."""
    high_bits: int = Field(default=8, ge=2, le=8)
    """Of inputs and weights in the high part."""
    low_bits: int = Field(default=4, ge=2, le=8)
    """Of all others."""
    rounding: Literal["nearest", "gptq"] = "gptq"
    """Of weights: each by itself, or with regard to the inputs' second moment."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the mean second moment of an input that is added to each; `gptq` alone."""
    test_share: float = Field(default=0.25, gt=0, lt=1)
    """Expected share of the samples that have no part in the layer and are measured."""
    sample_rows: int | None = Field(default=20_000, ge=4)
    """Rows to draw; None: all, if there are no more than the most."""
    most_rows: int = Field(default=100_000, ge=4)
    """Refuse more rows than this: they are held in memory in float64."""
    seed: int = Field(default=0, ge=0)
    """Of the draw, of the split and of the rotations."""


class Result(Frozen):
    """What was found. Losses are shares of the outputs' energy, a bias left out."""

    kind: Literal["mixed_precision"]
    """What stands for the layer."""
    n_train_rows: int
    n_test_rows: int
    n_test_samples: int
    width: int
    """Inputs of the layer."""
    outputs: int
    """Outputs of the layer."""
    high: int
    """Inputs in the high part."""
    high_bits: int
    low_bits: int
    bits: float
    """Mean of an input, and of a weight."""
    energy_high: float
    """Share of the inputs' energy in the high part, on training rows."""
    lost_weights: float
    """Of rounded weights alone, on training rows."""
    lost: float
    """Of rounded inputs and weights, on held-out rows."""
    lost_unsplit: float
    """The same with all in `low_bits` after one random rotation."""
    lost_unrotated: float
    """The same with all in `low_bits` and no rotation."""
    bytes_before: int
    """Of the weights as the network has them."""
    bytes_after: int
    """Of packed codes and steps."""
    rotation_bytes: int
    """Of the rotation in the dtype of the weights, where no other layer takes it over."""
    caveats: tuple[str, ...]


class _Part(NamedTuple):
    """Some of the rotated inputs."""

    turn: Float64[Tensor, "input component"]
    bits: int
    coded: Coded
    """Of the weights of these."""


def max_rows(config: Config) -> int:
    """Rows in memory at most."""
    return config.most_rows


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, or one of the parts is empty.
    """
    layer_compression.check_weight(inputs, config.weight)
    width = inputs.widths["x"]
    if not 0 < _high(width, config) < width:
        raise MethodError(
            f"a share of {config.share:g} of {width} inputs is {_high(width, config)}, expected 1 to {width - 1}; set share"
        )


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The layer from training rows, and what it loses on held-out rows.

    Raises:
        MethodError: if no rows are left on a side of the split, held-out outputs are all zero, or a second moment is singular.

    Cost: O(row width (width + outputs)) and O(width^3).
    """
    stored, test = inputs.weights[config.weight], held_out(block.sample, config.test_share, config.seed)
    weight, x, y = stored.double(), block["x"][~test].double(), block["x"][test].double()
    _require(x, y, weight, config)
    gram, high = x.T @ x / len(x), _high(x.shape[1], config)
    split = rotation(gram, high, config.seed)
    parts = [
        _part(weight, gram, turn, bits, config)
        for turn, bits in (
            (split.matrix[:, :high], config.high_bits),
            (split.matrix[:, high:], config.low_bits),
        )
    ]
    alone = {
        name: [_part(weight, gram, turn, config.low_bits, config)]
        for name, turn in (
            ("turned", rotation(gram, 0, config.seed).matrix),
            ("plain", torch.eye(len(gram)).to(gram)),
        )
    }
    stands_for = torch.cat([part.coded.weight() for part in parts], 1) @ split.matrix.T
    result = Result(
        kind="mixed_precision",
        n_train_rows=len(x),
        n_test_rows=len(y),
        n_test_samples=len(torch.unique(block.sample[test])),
        width=weight.shape[1],
        outputs=weight.shape[0],
        high=high,
        high_bits=config.high_bits,
        low_bits=config.low_bits,
        bits=config.low_bits + (config.high_bits - config.low_bits) * high / weight.shape[1],
        energy_high=split.energy,
        lost_weights=lost_share(weight, stands_for, gram),
        lost=_lost(y, weight, parts),
        lost_unsplit=_lost(y, weight, alone["turned"]),
        lost_unrotated=_lost(y, weight, alone["plain"]),
        bytes_before=stored.numel() * stored.element_size(),
        bytes_after=sum(_bytes(part) for part in parts),
        rotation_bytes=gram.numel() * stored.element_size(),
        caveats=_caveats(len(x), split, weight),
    )
    code, step = (torch.cat([getattr(part.coded, name) for part in parts], 1) for name in ("code", "step"))
    arrays = {"rotation": split.matrix, "code": code, "step": step}
    return result, {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}


def _high(width: int, config: Config) -> int:
    return round(config.share * width)


def _require(x: Tensor, y: Tensor, weight: Tensor, config: Config) -> None:
    if not len(x) or not len(y):
        raise MethodError(
            f"{len(x)} rows to make the layer and {len(y)} to measure it, expected some of each; capture more samples, or set test_share"
        )
    if not bool((y @ weight.T).any()) or not bool(x.any()):
        raise MethodError(
            f"all inputs or outputs of {config.weight} are zero in the rows that were read; leave the layer out"
        )


def _part(weight: Tensor, gram: Tensor, turn: Tensor, bits: int, config: Config) -> _Part:
    """Weights of some turned inputs, in codes."""
    turned, seen = weight @ turn, turn.T @ gram @ turn
    coded = rounded(turned, bits, None, symmetric=True, clip=True)
    if config.rounding == "gptq" and output_energy(turned, seen) > NOTHING * output_energy(weight, gram):
        other = gptq(turned, seen, bits, damping=config.damping, clip=True)
        coded = min(coded, other, key=lambda each: output_energy(turned - each.weight(), seen))
    return _Part(turn, bits, coded)


def _lost(rows: Tensor, weight: Tensor, parts: list[_Part]) -> float:
    """Of the outputs' energy, with rounded inputs."""
    wanted = rows @ weight.T
    found = torch.zeros_like(wanted)
    for part in parts:
        found += rounded_rows(rows @ part.turn, part.bits) @ part.coded.weight().T
    return float((found - wanted).square().sum() / wanted.square().sum())


def _bytes(part: _Part) -> int:
    """Packed, with steps of two bytes where float16 holds them, which is as a rule, else of four."""
    step = part.coded.step
    each = 2 if torch.equal(step.half().float(), step) else 4
    return len(step) * (row_bytes(part.turn.shape[1], part.bits) + each)


def _caveats(n_rows: int, split: Rotation, weight: Tensor) -> tuple[str, ...]:
    width, notes = weight.shape[1], ["one draw of the random rotations; another seed gives another loss"]
    if n_rows < 10 * width:
        notes.append(
            f"{n_rows} rows for {width} inputs: leading directions of few rows hold less of the energy of others"
        )
    return tuple(notes)

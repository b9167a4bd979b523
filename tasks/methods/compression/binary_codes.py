"""Rows told by signs: a bit for each direction of `compression.binary_rotation`, packed eight to a byte.

Similarities of rows follow from the bits that differ: `similarity` of the rotation's artifact, at their number. What they are worth its
result tells. Signs hold nothing of a row's length, and rows cannot be decoded from them.

Arrays: `code` (row, byte) the bits in order, the first the highest of its byte, as NumPy packs them; 0 for rows of failed samples. `ones`
(bit) the share of rows that are on the positive side of each direction.
"""

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import row_codes
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

VERSION = 1
KIND = "map"
READS = {"x": RowsPort(), "rotation": ArtifactPort("compression.binary_rotation", one_width=True)}
ARRAYS = {"code": ("row", "byte"), "ones": ("bit",)}
REFERENCE = "Gong, Lazebnik, Gordo, Perronnin, IEEE Transactions on Pattern Analysis and Machine Intelligence 35 (2013) 2916"
SEEDS = ()
WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)
UNEVEN = 0.1
"""A bit is said to tell little where fewer rows than this share are on one of its sides."""


class Config(Frozen):
    """All options are those of the rotation."""


class Result(Frozen):
    """What the codes cost."""

    n_rows: int
    width: int
    """Features."""
    bits: int
    bits_per_dimension: float
    """Over features."""
    uneven_bits: int
    """That fewer than a tenth of the rows, or more than nine tenths, are on the positive side of."""
    bytes_before: int
    """Of the rows as they were stored, not compressed."""
    bytes_coded: int
    bytes_rotation: int
    """Of directions and mean, which rows are coded with."""
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the directions are of another width.
    """
    made, width = len(inputs.artifacts["rotation"]["mean"]), inputs.widths["x"]
    if made != width:
        raise MethodError(
            f"the directions have {made} features, the site has {width}; connect a stage of the same site"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {"code": RowOutput("uint8", width=len(inputs.artifacts["rotation"]["direction"]) // 8, dim="byte")}


def start(inputs: Inputs, config: Config) -> State:
    """Directions and mean as they are stored, in float64."""
    made = inputs.artifacts["rotation"]
    return {"components": made["direction"].double(), "mean": made["mean"].double()}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Packed signs, of products in float64; 0 counts as positive. Cost: 2 row feature bits flops."""
    seen = row_codes.seen(block["x"], carry, shape=False, beside=False)
    bits = (seen.coordinates >= 0).reshape(len(block), len(carry["components"]) // 8, 8)
    weights = torch.tensor(WEIGHTS, dtype=torch.uint8, device=bits.device)
    return {"code": (bits * weights).sum(2).to(torch.uint8)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts of bits."""
    weights = torch.tensor(WEIGHTS, dtype=torch.uint8, device=outputs["code"].device)
    bits = (outputs["code"][:, :, None] & weights) > 0
    return {
        "n": torch.tensor(len(block), device=bits.device),
        "bytes": torch.tensor(block["x"].nbytes, device=bits.device),
        "ones": bits.sum(0).flatten(),
    }


def merge(a: State, b: State) -> State:
    """The counts of both."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Sizes, and how evenly bits are used."""
    n, (bits, width) = int(state["n"]), carry["components"].shape
    ones = state["ones"].double() / max(1, n)
    uneven = int(((ones < UNEVEN) | (ones > 1 - UNEVEN)).sum()) if n else 0
    notes = (
        f"{uneven} of {bits} bits have nine in ten rows on one side: rows are unlike those of the rotation, or it was made about zero",
    )
    result = Result(
        n_rows=n,
        width=width,
        bits=bits,
        bits_per_dimension=bits / width,
        uneven_bits=uneven,
        bytes_before=int(state["bytes"]),
        bytes_coded=n * bits // 8,
        bytes_rotation=4 * (bits * width + width),
        caveats=notes if uneven else (),
    )
    return result, {"ones": Array(ones, ARRAYS["ones"])}

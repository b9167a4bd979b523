"""Normal rows that others are compared with one by one: all of them, or so many drawn at random.

Connect normal rows alone. Rows are drawn by a hash of their places, the same for any workers; while there are no more than `most` all are
kept and what is found among them is exact. Arrays: `rows` (point, feature), float64, in the order of their hashes,
each over its length where that is asked for; `sample` (point), which sample each is of, counted in its own capture: of several captures
with one row of each sample a number of its own, as those of the captures come again.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State
from tasks.numerics import moments, row_sample

VERSION = 3
KIND = "reduce"
READS = {"x": RowsPort()}
ARRAYS = {"rows": ("point", "feature"), "sample": ("point",)}
REFERENCE = "Bottom-k sampling: Cohen, Kaplan, Summarizing data using bottom-k sketches, PODC (2007)"
SEEDS = ()
MOST_BYTES = 1 << 31


class Config(Frozen):
    """How many rows, and whether their lengths count."""

    most: int = Field(default=10_000, ge=1)
    """Rows that are kept."""
    unit_length: bool = True
    """Divide each row by its length, so that directions are compared; rows of length 0 stay."""


class Result(Frozen):
    """What was kept."""

    n_rows: int
    """Kept."""
    n_seen: int
    """Good rows that there were."""
    unit_length: bool
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the kept rows take more than 2 GiB.
    """
    needed = 8 * _places(inputs, config) * (inputs.widths["x"] + 1)
    if needed > MOST_BYTES:
        raise MethodError(
            f"{_places(inputs, config):,} rows of {inputs.widths['x']} features take {needed:,} bytes, at most {MOST_BYTES:,} are used; "
            f"ask for at most {MOST_BYTES // (8 * (inputs.widths['x'] + 1)):,} rows"
        )


def start(inputs: Inputs, config: Config) -> State:
    """How many rows there may be."""
    return {"most": torch.tensor(_places(inputs, config))}


def partial(block: Block, carry: State, config: Config) -> State:
    """A sample of a block's rows.

    Raises:
        MethodError: for rows that are not finite.
    """
    x = block["x"]
    if not bool(x.isfinite().all()):
        moments.refuse_not_finite(x)
    rows = unit_length(x.double()) if config.unit_length else x.double()
    with_sample = torch.cat([rows, block.sample[:, None].double()], 1)
    drawn = row_sample.of_rows(block.index, with_sample, int(carry["most"]))
    return drawn | {"n": torch.tensor(len(x), device=x.device)}


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return row_sample.merge(a, b) | {"n": a["n"] + b["n"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The rows that were kept.

    Raises:
        MethodError: without rows.
    """
    kept, seen = row_sample.values(state), int(state["n"])
    rows, sample = kept[:, :-1], kept[:, -1].long()
    if not len(rows):
        raise MethodError("found no rows, expected at least one; capture more samples")
    notes = []
    if len(rows) < seen:
        notes.append(
            f"{len(rows):,} of {seen:,} rows are kept: distances to them are no smaller than to all; raise `most` for exact ones"
        )
    if len(inputs.captures.get("x", ())) > 1 and inputs.n_rows == inputs.n_samples:
        sample = torch.arange(len(rows), device=rows.device)
    result = Result(n_rows=len(rows), n_seen=seen, unit_length=config.unit_length, caveats=tuple(notes))
    return result, {
        "rows": Array(rows.contiguous(), ARRAYS["rows"]),
        "sample": Array(sample, ARRAYS["sample"]),
    }


def unit_length(x: Tensor) -> Tensor:
    """Each row over its length; zeros stay."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def _places(inputs: Inputs, config: Config) -> int:
    return max(1, min(config.most, inputs.n_rows))

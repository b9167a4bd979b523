"""Thresholded subspace clustering: of each row the rows that point most nearly its way, or the opposite one.

Arrays: `index` (row, entry) and `coefficient` (row, entry) name each row's q rows of largest |cosine| and their weights exp(-2 arccos
|cosine|), largest first. Exact, for any number of rows: a blocked search, no matrix of rows by rows.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import self_expression
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, State
from tasks.numerics.largest_products import alike, largest, none_yet

VERSION = 1
KIND = "pairs"
READS = self_expression.READS
ARRAYS = self_expression.ARRAYS
REFERENCE = "Heckel, Boelcskei, IEEE Transactions on Information Theory 61 (2015) 6320: algorithm TSC"
SEEDS = ()
merge = self_expression.merge


class Config(Frozen):
    """How many rows each is joined with."""

    entries: int = Field(default=5, ge=1, le=1024)
    """Rows that each is joined with: fewer than a cluster has, more where subspaces have many dimensions."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the products."""


class Result(Frozen):
    """The graph in numbers."""

    n_rows: int
    entries: int
    """Largest number of rows that a row is joined with."""
    mean_entries: float | None
    isolated: int
    """Rows without any."""
    mean_weight: float | None
    """Over all places: 1 where rows lie on lines of equal rows, near exp(-pi) = 0.04 where they are at right angles."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are too few rows, or the preparation is of another site.
    """
    self_expression.check_rows(inputs, config.entries)


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return self_expression.coefficients(config.entries)


def start(inputs: Inputs, config: Config) -> State:
    """What is done to rows."""
    return self_expression.carried(inputs)


def prepared(block: Block, carry: State, config: Config) -> Block:
    """Rows as they are compared, whatever their length."""
    return self_expression.prepared(block, carry | {"unit": torch.tensor(True)}, config)


def begin(block: Block, carry: State, config: Config) -> State:
    """No row yet."""
    return self_expression.state_of(none_yet(len(block), config.entries, block["x"].device))


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """The largest cosines after one more block."""
    found = self_expression.largest_of(state)
    found = largest(found, block["x"], block.index, other["x"], other.index, config.precision)
    return self_expression.state_of(found)


def conclude(state: State, block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Weights of the largest cosines."""
    weight = alike(lambda p: torch.exp(-2 * torch.arccos(p.abs().clamp(max=1))), state["product"])
    return {"index": state["index"], "coefficient": weight.where(state["index"] >= 0, 0.0)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts."""
    weight = outputs["coefficient"].sum()
    return self_expression.sums(outputs) | {"weight": weight}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means."""
    mean = self_expression.mean_of(state, "weight")
    result = Result(
        n_rows=int(state["n"]),
        entries=config.entries,
        mean_entries=self_expression.mean_of(state, "entries"),
        isolated=int(state["isolated"]),
        mean_weight=None if mean is None else mean / config.entries,
    )
    return result, {}

"""Each row as a combination of a few others that are taken greedily: sparse subspace clustering by orthogonal matching pursuit.

The row most aligned with what is left of a row is added, and all coefficients are fitted again by least squares, until `entries` are taken
or what is left is small. Every look is a blocked search over all rows with no matrix of rows by rows, exact: float32 rules out
most, float64 decides. Fits go through an
orthonormal basis of the taken rows, so that nearly dependent ones lose no digits.

Arrays: `index` (row, entry) and `coefficient` (row, entry), largest size first; `residual` (row) is the length of what is left over the
row's own.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import self_expression
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, State
from tasks.numerics import pursuit
from tasks.numerics.largest_products import TILE_ROWS

VERSION = 3
KIND = "pairs"
READS = self_expression.READS
ARRAYS = self_expression.ARRAYS | {"residual": ("row",)}
REFERENCE = "You, Robinson, Vidal, CVPR (2016) 3918, algorithm 1; Dyer, Sankaranarayanan, Baraniuk, JMLR 14 (2013) 2487"
SEEDS = ()
MOST_BYTES = 256 << 20
"""Of the bases of the rows that are expressed together."""
merge = self_expression.merge


class Config(Frozen):
    """When a row is expressed well enough."""

    entries: int = Field(default=5, ge=1, le=256)
    """Rows that each is expressed by, at most: the dimension of the subspaces, or less where rows are noisy and many."""
    tolerance: float = Field(default=1e-3, ge=0, lt=1)
    """Stop when what is left has no more than this share of the row's length."""
    noise: bool = False
    """Stop also when no row is more aligned with what is left than the best of as many random directions, among those that rows span,
    would be in one of twenty cases: what is left is noise then. Wrong where subspaces nearly fill these."""


class Result(Frozen):
    """The coefficients in numbers."""

    n_rows: int
    entries: int
    """Largest number of coefficients of a row."""
    mean_entries: float | None
    isolated: int
    """Rows without any."""
    residual: float | None
    """Mean over rows of the length of what is left over the row's own."""
    unfinished: float | None
    """Share of rows that took all entries with more left than the tolerance: noise, or subspaces of more dimensions."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are too few rows, or the preparation is of another site.
    """
    self_expression.check_rows(inputs, config.entries)


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return self_expression.coefficients(config.entries) | {"residual": RowOutput("float32")}


def start(inputs: Inputs, config: Config) -> State:
    """What is done to rows, and the alignment that chance gives."""
    rank = int(inputs.results["preparation"]["rank"])
    floor = pursuit.chance_alignment(inputs.n_rows, rank) if config.noise else 0.0
    return self_expression.carried(inputs) | {"floor": torch.tensor(floor, dtype=torch.float64)}


def at_once(inputs: Inputs, config: Config) -> int:
    """Rows whose bases fit in memory together."""
    width = int(inputs.results["preparation"]["width"])
    most = MOST_BYTES // (8 * width * (config.entries + 3))
    return most - most % TILE_ROWS if most > TILE_ROWS else max(1, most)


prepared = self_expression.prepared


def begin(block: Block, carry: State, config: Config) -> State:
    """Nothing taken yet."""
    return pursuit.begun(block["x"], config.entries)


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """The row most aligned with what is left, after one more block."""
    return pursuit.looked(state, block.index, other["x"], other.index)


def again(state: State, block: Block, carry: State, config: Config) -> tuple[State, bool]:
    """The best row is taken; another look while some row of the block wants one."""
    state = pursuit.taken(state, block["x"], config.tolerance, float(carry["floor"]))
    return state, bool(state["open"].any())


def conclude(state: State, block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Coefficients by least squares on the rows that were taken."""
    index, coefficient, residual = pursuit.coefficients(state, block["x"])
    return {"index": index, "coefficient": coefficient, "residual": residual.float()}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts."""
    full = (outputs["index"][:, -1] >= 0) & (outputs["residual"] > config.tolerance)
    return self_expression.sums(outputs, "residual") | {"unfinished": full.sum()}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means."""
    result = Result(
        n_rows=int(state["n"]),
        entries=config.entries,
        mean_entries=self_expression.mean_of(state, "entries"),
        isolated=int(state["isolated"]),
        residual=self_expression.mean_of(state, "residual"),
        unfinished=self_expression.mean_of(state, "unfinished"),
    )
    return result, {}

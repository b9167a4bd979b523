"""Each row as a sparse combination of the others, with a certificate for every row: the elastic net over all rows (EnSC).

At `tau` 1 it is the LASSO of sparse subspace clustering (SSC), where wanted with coefficients that sum to 1 (affine SSC).

    min_c  tau |c|_1 + (1 - tau) / 2 |c|^2 + gamma_i / 2 |z_i - sum_j c_j z_j|^2,   c_i = 0,

with gamma_i = gamma tau / max_j |z_i . z_j|, at which all coefficients are 0 up to gamma = 1. A row works with some columns at a time and
looks at all for those that would lower the objective, until none does: no matrix of rows by rows, and exactly the minimum over all.

Arrays: `index` (row, entry) and `coefficient` (row, entry), largest size first; `kept` (row) is the share of the sum of the sizes of a
row's coefficients that its entries hold; `residual` (row) the length of what all of them leave over the row's own; `violation` (row) by how
much the conditions of the minimum fail at worst, relative to tau.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import self_expression
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, State
from tasks.numerics import working_set
from tasks.numerics.largest_products import TILE_ROWS
from tasks.numerics.working_set import Problem

VERSION = 1
KIND = "pairs"
READS = self_expression.READS
ARRAYS = self_expression.ARRAYS | {"kept": ("row",), "residual": ("row",), "violation": ("row",)}
REFERENCE = (
    "You, Li, Robinson, Vidal, CVPR (2016) 3928: elastic net subspace clustering by an oracle based active set; Elhamifar, Vidal, IEEE "
    "TPAMI 35 (2013) 2765: SSC, affine SSC"
)
SEEDS = ()
MOST_BYTES = 512 << 20
"""Of the columns that rows work with together."""
ENOUGH = {"float64": 1e-6, "float32": 1e-4}
"""Violation up to which a row counts as certified, by the precision of the looks."""


class Config(Frozen):
    """What is minimised."""

    tau: float = Field(default=0.9, gt=0, le=1)
    """Share of the sum of sizes in the penalty, against squares; 1 is the LASSO. Lower ones take more rows of a subspace together."""
    gamma: float = Field(default=50.0, gt=1, le=1e12)
    """Weight of the residual, against that at which the first coefficient comes in: large ones express rows exactly, small ones keep to
    a row's nearest."""
    affine: bool = False
    """Coefficients of a row sum to 1: for subspaces that do not hold the origin, as of motions. Rows should keep their length then."""
    entries: int = Field(default=50, ge=1, le=1024)
    """Coefficients that are kept of each row."""
    columns: int = Field(default=100, ge=2, le=2048)
    """Rows that each begins with; half as many more may come in at a time. No answer depends on it, but where more have coefficients."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the looks at all rows; with float32 certificates hold to 1e-4. Minima are float64."""


class Result(Frozen):
    """The coefficients in numbers."""

    n_rows: int
    entries: int
    """Largest number of coefficients that were kept of a row."""
    mean_entries: float | None
    isolated: int
    """Rows without any."""
    kept: float | None
    """Mean over rows of the share of coefficients' sizes that was kept."""
    residual: float | None
    """Mean over rows of the length of what is left over the row's own."""
    largest_violation: float | None
    """Of the conditions of the minimum, relative to tau, over all rows."""
    uncertified: int
    """Rows whose violation exceeds 1e-6 (1e-4 where looks are float32): more have coefficients than they may work with; raise `columns`."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are too few rows, or the preparation is of another site.
    """
    self_expression.check_rows(inputs, 2)


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    of_rows = {name: RowOutput("float32") for name in ("kept", "residual", "violation")}
    return self_expression.coefficients(config.entries) | of_rows


def start(inputs: Inputs, config: Config) -> State:
    """What is done to rows."""
    return self_expression.carried(inputs)


def at_once(inputs: Inputs, config: Config) -> int:
    """Rows whose columns fit in memory together."""
    width, most = int(inputs.results["preparation"]["width"]), _problem(config).most
    rows = MOST_BYTES // (8 * most * (width + 2 * most))
    return rows - rows % TILE_ROWS if rows > TILE_ROWS else max(1, rows)


prepared = self_expression.prepared


def begin(block: Block, carry: State, config: Config) -> State:
    """Nothing known yet."""
    return working_set.begun(block["x"], _problem(config))


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """After a look at one more block."""
    return working_set.looked(state, block["x"], block.index, other["x"], other.index, _problem(config))


def again(state: State, block: Block, carry: State, config: Config) -> tuple[State, bool]:
    """After a look at all rows; another while some row of the block is not at its minimum."""
    return working_set.moved(state, block["x"], _problem(config))


def conclude(state: State, block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The largest coefficients."""
    c, entries = state["c"], config.entries
    order = torch.argsort(c.abs(), dim=1, descending=True, stable=True)[:, :entries]
    value = c.gather(1, order)
    index = torch.where(value != 0, state["member"].gather(1, order), -1)
    missing = max(0, entries - order.shape[1])
    total = c.abs().sum(1)
    length = torch.linalg.vector_norm(block["x"], dim=1)
    left = torch.linalg.vector_norm(working_set.residual(state, block["x"]), dim=1)
    return {
        "index": torch.nn.functional.pad(index, (0, missing), value=-1),
        "coefficient": torch.nn.functional.pad(value, (0, missing)),
        "kept": (value.abs().sum(1) / torch.where(total > 0, total, 1.0)).float(),
        "residual": (left / torch.where(length > 0, length, 1.0)).float(),
        "violation": state["violation"].float(),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts."""
    violation = outputs["violation"].double()
    largest = violation.max() if len(block) else violation.sum()
    sums = self_expression.sums(outputs, "kept", "residual")
    return sums | {"largest": largest, "uncertified": (violation > ENOUGH[config.precision]).sum()}


def merge(a: State, b: State) -> State:
    """The sums of both."""
    largest = torch.maximum(a["largest"], b["largest"])
    return self_expression.merge(a, b) | {"largest": largest}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means."""
    n = int(state["n"])
    result = Result(
        n_rows=n,
        entries=config.entries,
        mean_entries=self_expression.mean_of(state, "entries"),
        isolated=int(state["isolated"]),
        kept=self_expression.mean_of(state, "kept"),
        residual=self_expression.mean_of(state, "residual"),
        largest_violation=float(state["largest"]) if n else None,
        uncertified=int(state["uncertified"]),
    )
    return result, {}


def _problem(config: Config) -> Problem:
    most = config.columns + config.columns // 2
    return Problem(config.tau, config.gamma, config.affine, config.columns, most, config.precision)

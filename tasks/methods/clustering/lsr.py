"""Least squares regression of each row on all others, with the largest coefficients kept: exact, and no matrix of rows by rows.

With the rows Z [row, feature] and S = (Z'Z + ridge I)^-1, which is feature by feature, C = Z S Z' is (G + ridge I)^-1 G of G = ZZ' (form
`lsr2`); with no row in its own expression, C_ij = z_i S z_j / (1 - z_i S z_i) (`lsr1`). So coefficients are products of rows, of which the
largest are searched block by block.

Arrays: `index` (row, entry) and `coefficient` (row, entry), largest size first; `kept` (row) is the share of the sum of sizes of all
coefficients of a row that its entries hold.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import self_expression
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, State
from tasks.numerics.largest_products import largest, none_yet
from tasks.numerics.prepared_rows import mapped

VERSION = 2
KIND = "pairs"
READS = self_expression.READS
ARRAYS = self_expression.ARRAYS | {"kept": ("row",)}
REFERENCE = "Lu, Min, Zhao, Zhu, Huang, Yan, ECCV 7578 (2012) 347, eqs. (13), (14): least squares regression, by Woodbury's identity"
SEEDS = ()
merge = self_expression.merge


class Config(Frozen):
    """How rows are expressed."""

    ridge: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Weight of the squares of coefficients, times the mean squared length of the prepared rows."""
    form: Literal["lsr1", "lsr2"] = "lsr1"
    """`lsr1`: no row helps to express itself; `lsr2`: it does, and this coefficient is left out."""
    entries: int = Field(default=20, ge=1, le=1024)
    """Coefficients that are kept of each row."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the products."""


class Result(Frozen):
    """The coefficients in numbers."""

    n_rows: int
    entries: int
    """Largest number of coefficients of a row."""
    mean_entries: float | None
    isolated: int
    """Rows without any."""
    kept: float | None
    """Mean over rows of the share of all coefficients' sizes that was kept."""
    effective_dimension: float
    """Sum of s / (s + ridge) over the eigenvalues s of the rows' second moments: dimensions in which rows are expressed."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are too few rows, or the preparation is of another site.
    """
    self_expression.check_rows(inputs, config.entries)


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return self_expression.coefficients(config.entries) | {"kept": RowOutput("float32")}


def start(inputs: Inputs, config: Config) -> State:
    """What is done to rows, and the inverse of their second moments with the ridge."""
    second = inputs.artifacts["preparation"]["second_moment"].double()
    values, columns = torch.linalg.eigh(second)
    values = values.clamp(min=0)
    ridge = (
        config.ridge * max(float(values.sum()), 1e-300) / max(int(inputs.results["preparation"]["n_rows"]), 1)
    )
    carry = {
        "inverse": (columns / (values + ridge)) @ columns.T,
        "dimension": (values / (values + ridge)).sum(),
    }
    return self_expression.carried(inputs) | carry


def prepared(block: Block, carry: State, config: Config) -> Block:
    """Rows as they are expressed (`x`), and as they express (`by`)."""
    z = self_expression.prepared(block, carry, config)["x"]
    x = mapped(z, carry["inverse"])
    own = (x * z).sum(1, keepdim=True) if config.form == "lsr1" else 0.0
    return replace(block, rows={"x": x / (1 - own), "by": z})


def begin(block: Block, carry: State, config: Config) -> State:
    """No coefficients yet."""
    return self_expression.state_of(none_yet(len(block), config.entries, block["x"].device))


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """The largest coefficients after one more block."""
    found = self_expression.largest_of(state)
    found = largest(found, block["x"], block.index, other["by"], other.index, config.precision)
    return self_expression.state_of(found)


def conclude(state: State, block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The largest coefficients and their share."""
    coefficient, kept = state["product"], self_expression.kept_share(state)
    return {"index": state["index"], "coefficient": coefficient, "kept": kept}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts."""
    return self_expression.sums(outputs, "kept")


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means."""
    result = Result(
        n_rows=int(state["n"]),
        entries=config.entries,
        mean_entries=self_expression.mean_of(state, "entries"),
        isolated=int(state["isolated"]),
        kept=self_expression.mean_of(state, "kept"),
        effective_dimension=float(carry["dimension"]),
    )
    return result, {}

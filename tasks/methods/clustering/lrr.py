"""Low-rank representation in closed form: rows joined by the shape interaction matrix, with the largest entries kept.

With the rows' singular value decomposition Z = U S V', the representation of least nuclear norm that gives the rows exactly is C = U_r
U_r' (Costeira, Kanade; Liu et al.); with Gaussian noise of weight `noise` > 0 it is U diag(1 - noise / s^2)_+ U' (Favaro, Vidal,
Ravichandran; Vidal, Favaro), which leaves out directions with s^2 <= noise. Entries are products of rows that are turned and scaled, so
no matrix of rows by rows is needed. The graph is |C_ij / (C_ii C_jj)^(1/2)|^power, as Liu et al. make it.

Arrays: `index` (row, entry) and `coefficient` (row, entry), largest first; `kept` (row) is the share that the entries hold of
the sum of |C_ij / (C_ii C_jj)^(1/2)| over all other rows.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import self_expression
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, State
from tasks.numerics.largest_products import alike, largest, none_yet
from tasks.numerics.prepared_rows import mapped

VERSION = 2
KIND = "pairs"
READS = self_expression.READS
ARRAYS = self_expression.ARRAYS | {"kept": ("row",)}
REFERENCE = (
    "Liu, Lin, Yan, Sun, Yu, Ma, IEEE TPAMI 35 (2013) 171, eq. (11) and algorithm 2; Vidal, Favaro, Pattern Recognition Letters 43 (2014) "
    "47, theorem 1"
)
SEEDS = ()
ROUNDING = 1e-12
"""Share of a row's length along the used directions that may be rounding alone."""
merge = self_expression.merge


class Config(Frozen):
    """How rows are expressed."""

    rank: int | None = Field(default=None, ge=1)
    """Leading directions that are used; None: all above rounding and noise."""
    noise: float = Field(default=1e-3, ge=0, lt=1)
    """Squared singular values up to this share of the largest are noise; 0: the noise-free form, whose entries tell little where rows
    span all features."""
    power: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """To which sizes of entries are raised: higher ones keep apart what is nearly at right angles."""
    entries: int = Field(default=20, ge=1, le=1024)
    """Entries that are kept of each row."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the products."""


class Result(Frozen):
    """The entries in numbers."""

    n_rows: int
    entries: int
    """Largest number of entries of a row."""
    mean_entries: float | None
    isolated: int
    """Rows without any."""
    kept: float | None
    """Mean over rows of the share of all entries' sizes, before the power, that was kept."""
    rank: int
    """Directions that were used."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are too few rows, the preparation is of another site, or has fewer directions than asked for.
    """
    self_expression.check_rows(inputs, config.entries)
    have = int(inputs.results["preparation"]["rank"])
    if (config.rank or 1) > have:
        raise MethodError(
            f"the prepared rows span {have} directions, asked for {config.rank or 1}; lower `rank`"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return self_expression.coefficients(config.entries) | {"kept": RowOutput("float32")}


def start(inputs: Inputs, config: Config) -> State:
    """What is done to rows, and the map L with C = Z L L' Z'."""
    ascending, columns = torch.linalg.eigh(inputs.artifacts["preparation"]["second_moment"].double())
    values, columns = ascending.flip(0), columns.flip(1)
    most = config.rank or int(inputs.results["preparation"]["rank"])
    noise = config.noise * float(values[0])
    used = max(1, min(most, int((values > noise).sum())))
    gain = ((1 - noise / values[:used]).clamp(min=0) / values[:used]).sqrt()
    return self_expression.carried(inputs) | {"map": columns[:, :used] * gain}


def prepared(block: Block, carry: State, config: Config) -> Block:
    """Rows turned, scaled and of length 1; zeros where nothing of a row but rounding lies along the directions that are used."""
    z = self_expression.prepared(block, carry, config)["x"]
    y = mapped(z, carry["map"])
    length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    rounding = ROUNDING * torch.linalg.vector_norm(z, dim=1, keepdim=True) * carry["map"].norm(dim=0).amax()
    return replace(block, rows={"x": torch.where(length > rounding, y / length, 0.0)})


def begin(block: Block, carry: State, config: Config) -> State:
    """No entries yet."""
    return self_expression.state_of(none_yet(len(block), config.entries, block["x"].device))


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """The largest entries after one more block."""
    found = self_expression.largest_of(state)
    found = largest(found, block["x"], block.index, other["x"], other.index, config.precision)
    return self_expression.state_of(found)


def conclude(state: State, block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """Powers of the largest entries, and their share before."""
    coefficient, kept = (
        alike(lambda p: p.abs() ** config.power, state["product"]),
        self_expression.kept_share(state),
    )
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
        rank=carry["map"].shape[1],
    )
    return result, {}

"""What methods share that express each row by a few others: prepared rows, and coefficients as row-aligned arrays.

The coefficients of a row are `index` (row, entry), int64, rows over all captures laid end to end, and `coefficient` (row, entry),
float64, largest first; free places hold -1 and 0. A graph of rows follows from them (`tasks.numerics.graphs`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics.largest_products import Largest
from tasks.numerics.prepared_rows import Preparation, prepared_rows

READS = {"x": RowsPort(), "preparation": ArtifactPort("clustering.preparation", one_width=True)}
ARRAYS = {"index": ("row", "entry"), "coefficient": ("row", "entry")}
GRAPHS = (
    "clustering.tsc",
    "clustering.ssc_omp",
    "clustering.elastic_net",
    "clustering.lsr",
    "clustering.lrr",
)
"""Methods with these arrays."""


def check_rows(inputs: Inputs, entries: int) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if rows are not more than the entries that each may have, or the preparation is of another width.
    """
    if inputs.n_rows <= entries:
        raise MethodError(
            f"found {inputs.n_rows} rows, expressing each by up to {entries} others needs at least {entries + 1}; lower `entries`"
        )
    width = len(inputs.artifacts["preparation"]["mean"])
    if width != inputs.widths["x"]:
        raise MethodError(
            f"the preparation is of {width} features, the site has {inputs.widths['x']}; connect a stage of the same site"
        )


def carried(inputs: Inputs) -> State:
    """What is done to rows, as tensors."""
    found, result = inputs.artifacts["preparation"], inputs.results["preparation"]
    unit = torch.tensor(bool(result["unit_length"]))
    return {"mean": found["mean"].double(), "directions": found["directions"].double(), "unit": unit}


def prepared(block: Block, carry: State, config: Any) -> Block:
    """The block with prepared rows, float64."""
    directions = carry["directions"]
    how = Preparation(carry["mean"], directions if len(directions) else None, bool(carry["unit"]))
    return replace(block, rows={"x": prepared_rows(block["x"], how)})


def coefficients(entries: int) -> dict[str, RowOutput]:
    """The outputs that all have."""
    return {
        "index": RowOutput("int64", width=entries, dim="entry"),
        "coefficient": RowOutput("float64", width=entries, dim="entry"),
    }


def state_of(found: Largest) -> State:
    """As a row state."""
    return {"product": found.product, "index": found.column, "total": found.total}


def largest_of(state: State) -> Largest:
    """From a row state."""
    return Largest(state["product"], state["index"], state["total"])


def kept_share(state: State) -> Tensor:
    """float32 [row]: the share of the sum of sizes of all products that the largest hold; 0 where all are 0."""
    share = state["product"].abs().sum(1) / torch.where(state["total"] > 0, state["total"], 1.0)
    return share.float()


def sums(outputs: Mapping[str, Tensor], *shares: str) -> State:
    """Counts of rows and entries, and the sums of outputs that are one number per row."""
    used = (outputs["index"] >= 0).sum(1)
    counts = {
        "n": torch.tensor(len(used), device=used.device),
        "entries": used.sum(),
        "isolated": (used == 0).sum(),
    }
    return counts | {name: outputs[name].double().sum() for name in shares}


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return {name: a[name] + b[name] for name in a}


def mean_of(state: State, name: str) -> float | None:
    """Over rows; None without any."""
    n = int(state["n"])
    return float(state[name]) / n if n else None

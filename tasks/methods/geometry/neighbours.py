"""The k nearest rows of every row, exactly: Euclidean distances and the rows' indices.

Arrays: `distance` (row, neighbour) float64, ascending; `index` (row, neighbour) int64, the row of the
neighbour over all captures laid end to end. A row is not its own neighbour; equal distances come in order of
index. Where fewer than k other rows are good (or of other samples), distances are infinite and indices -1; rows of failed samples
are NaN and -1.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics.neighbours import Neighbours, nearest, none_yet

VERSION = 1
KIND = "pairs"
READS = {"x": RowsPort()}
ARRAYS = {"distance": ("row", "neighbour"), "index": ("row", "neighbour")}
REFERENCE = "Exact search: candidates by matrix products with an error bound, distances by differences; no approximation"
SEEDS = ()


class Config(Frozen):
    """How many neighbours."""

    k: int = Field(default=20, ge=1, le=1024)
    """Neighbours per row."""
    other_samples: bool = False
    """Whether rows of the same sample are no neighbours: tokens of one text lie on a path, whose dimension is not that of the site."""


class Result(Frozen):
    """What is seen at once; the neighbours are in the arrays."""

    n_rows: int
    k: int
    other_samples: bool
    """Whether neighbours are rows of other samples."""
    mean_first_distance: float | None
    """Mean distance to the nearest row; None without rows."""
    mean_last_distance: float | None
    """Mean distance to the k-th nearest row."""
    duplicates: int
    """Rows at distance 0 from another one; estimators of dimension must leave them out."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are not more rows than neighbours, or one sample where others are wanted.
    """
    if config.other_samples and inputs.n_samples < 2:
        raise MethodError(
            "found 1 sample, neighbours in other samples need at least 2; set other_samples: false"
        )
    if inputs.n_rows <= config.k:
        raise MethodError(f"found {inputs.n_rows} rows, {config.k} neighbours need at least {config.k + 1}")


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {
        "distance": RowOutput("float64", width=config.k, dim="neighbour"),
        "index": RowOutput("int64", width=config.k, dim="neighbour"),
    }


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is needed beside the rows."""
    return {}


def begin(block: Block, carry: State, config: Config) -> State:
    """No neighbours yet."""
    return _state(none_yet(len(block), config.k, block["x"].device))


def pair(state: State, block: Block, other: Block, carry: State, config: Config) -> State:
    """The nearest rows after one more block."""
    found = Neighbours(state["distance"], state["index"])
    classes = (block.sample, other.sample) if config.other_samples else None
    return _state(nearest(found, block["x"], block.index, other["x"], other.index, classes))


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums over rows."""
    distance = outputs["distance"]
    return {
        "n": torch.tensor(len(block), dtype=torch.int64, device=distance.device),
        "first": distance[:, 0].sum(),
        "last": distance[:, -1].sum(),
        "duplicates": (distance[:, 0] == 0).sum(),
    }


def merge(a: State, b: State) -> State:
    """The sums of both."""
    return {name: a[name] + b[name] for name in a}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means of the sums."""
    n = int(state["n"])
    result = Result(
        n_rows=n,
        k=config.k,
        other_samples=config.other_samples,
        mean_first_distance=_mean(state["first"], n),
        mean_last_distance=_mean(state["last"], n),
        duplicates=int(state["duplicates"]),
    )
    return result, {}


def _state(found: Neighbours) -> State:
    return {"distance": found.distance, "index": found.index}


def _mean(total: Tensor, n: int) -> float | None:
    value = float(total) / n if n else math.inf
    return value if math.isfinite(value) else None

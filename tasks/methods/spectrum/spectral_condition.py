"""Whether weights and their updates are as large as feature learning wants at any width: spectral norm over sqrt(fan-out / fan-in).

Rows are matrices: connect recorded weights (`name:weight`), updates (`name:update`) or exact gradients. The condition is that the ratio
stays of order 1 for all layers and widths, for weights and updates both; compare networks of several widths. A convolution counts as the
matrix [outputs, inputs times positions], a vector as a matrix of one column. Arrays, one number per row: `ratio`; `ratio_null`, which a
Gaussian matrix of the same Frobenius norm would have; `stable_rank`, |W|_F^2 / |W|_2^2, NaN for a matrix of zeros.
"""

import math

import torch
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import matrices
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, RowsPort, State

VERSION = 1
KIND = "map"
READS = {"x": RowsPort()}
ARRAYS = {"ratio": ("row",), "ratio_null": ("row",), "stable_rank": ("row",)}
REFERENCE = (
    "Yang, Simon, Bernstein, A spectral condition for feature learning (2023): condition 1; a Gaussian matrix's norm: Davidson, Szarek "
    "(2001), theorem II.13"
)
SEEDS = (62,)


class Config(Frozen):
    """How matrices are stored."""

    turned: bool = False
    """Rows are [inputs, outputs], as the layers of GPT-2 store them, rather than [outputs, inputs]."""


class Result(Frozen):
    """Means are over rows that are not zero; None where there is none."""

    n_rows: int
    n_zero: int
    """Matrices of zeros."""
    fan_out: int
    fan_in: int
    ratio_first: float | None
    """Of the first row, such as the weights before a training: |W|_2 / sqrt(fan_out / fan_in)."""
    ratio_last: float | None
    ratio_mean: float | None
    ratio_min: float | None
    ratio_max: float | None
    ratio_null: float | None
    """Mean of what Gaussian matrices of the same Frobenius norms would have."""
    stable_rank: float | None
    """Mean: 1 for matrices of rank one."""
    stable_rank_null: float
    """Of a Gaussian matrix of that shape."""
    caveats: tuple[str, ...]


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {name: RowOutput("float64") for name in ARRAYS}


def start(inputs: Inputs, config: Config) -> State:
    """The sides of the matrices."""
    return {"sides": torch.tensor(matrices.sides(inputs))}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """One singular value decomposition for each row. Cost: out in min(out, in)."""
    m, n = carry["sides"].tolist()
    fan_out, fan_in = (n, m) if config.turned else (m, n)
    found = [torch.linalg.svdvals(row.double().reshape(m, n)) for row in block["x"]]
    if not found:
        return {name: block["x"].new_zeros(0, dtype=torch.float64) for name in ARRAYS}
    values = torch.stack(found)
    length = torch.linalg.vector_norm(values, dim=1)
    wanted = math.sqrt(fan_out / fan_in)
    return {
        "ratio": values[:, 0] / wanted,
        "ratio_null": length * (_gaussian(m, n) / wanted),
        "stable_rank": (length / values[:, 0]).square(),
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums and extremes, and the first and last row."""
    ratio, zero = outputs["ratio"], outputs["ratio"] == 0
    kept = ratio[~zero]
    none = ratio.new_full((), math.nan)
    order = torch.argsort(block.index)
    return {
        "n": torch.tensor([len(ratio), int(zero.sum())], device=ratio.device),
        "sums": torch.stack([values[~zero].sum() for values in (outputs[name] for name in ARRAYS)]),
        "extremes": torch.stack([kept.min(), kept.max()]) if len(kept) else torch.stack([-none, none]),
        "index": block.index[order[[0, -1]]] if len(order) else block.index.new_full((2,), -1),
        "ends": ratio[order[[0, -1]]] if len(order) else torch.stack([none, none]),
    }


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    if int(a["n"][0]) == 0 or int(b["n"][0]) == 0:
        return dict(b if int(a["n"][0]) == 0 else a)
    first, last = (a, b)[int(b["index"][0] < a["index"][0])], (a, b)[int(b["index"][1] > a["index"][1])]
    return {
        "n": a["n"] + b["n"],
        "sums": a["sums"] + b["sums"],
        "extremes": torch.stack(
            [torch.fmin(a["extremes"][0], b["extremes"][0]), torch.fmax(a["extremes"][1], b["extremes"][1])]
        ),
        "index": torch.stack([first["index"][0], last["index"][1]]),
        "ends": torch.stack([first["ends"][0], last["ends"][1]]),
    }


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means, extremes and ends."""
    m, n = matrices.sides(inputs)
    rows, zero = state["n"].tolist() if state else (0, 0)
    kept = rows - zero
    means = (state["sums"] / kept).tolist() if kept else [None] * 3
    extremes = state["extremes"].tolist() if kept else [None] * 2
    ends = state["ends"].tolist() if rows else [None] * 2
    result = Result(
        n_rows=rows,
        n_zero=zero,
        fan_out=n if config.turned else m,
        fan_in=m if config.turned else n,
        ratio_first=ends[0],
        ratio_last=ends[1],
        ratio_mean=means[0],
        ratio_min=extremes[0],
        ratio_max=extremes[1],
        ratio_null=means[1],
        stable_rank=means[2],
        stable_rank_null=1 / _gaussian(m, n) ** 2,
        caveats=matrices.caveats(inputs),
    )
    return result, {}


def _gaussian(m: int, n: int) -> float:
    """Spectral over Frobenius norm of a Gaussian matrix: sqrt(m) + sqrt(n) over sqrt(m n), at most 1."""
    return min(1.0, (math.sqrt(m) + math.sqrt(n)) / math.sqrt(m * n))

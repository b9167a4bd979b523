"""The intrinsic dimension about each row, from its distances to the nearest others: for colouring maps, and in quantiles.

Reads distances of `geometry.neighbours`, not rows. Array `dimension` (row): NaN where a row has a duplicate or too few neighbours,
or where all its neighbours are as far. One row's number has a standard error of a share 1 / sqrt(k - 3).
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import intrinsic_dimension as numerics
from tasks.numerics import row_sample
from tasks.numerics.intrinsic_dimension import Estimator

VERSION = 1
KIND = "map"
READS = {"x": RowsPort(values=False), "neighbours": ArtifactPort("geometry.neighbours", aligned=True)}
ARRAYS = {"dimension": ("row",), "share": ("level",), "quantile": ("level",)}
REFERENCE = (
    "Amsaleg et al., Estimating local intrinsic dimensionality, KDD (2015); Levina, Bickel, NIPS (2004); Huang et al., LDReg: local "
    "dimensionality regularized self-supervised learning, ICLR (2024), and its code for ldreg"
)
SEEDS = (0,)
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Config(Frozen):
    """Which estimate."""

    estimator: Estimator = "unbiased"
    """mle: (k-1) over the sum of ln(r_k / r_j); unbiased: (k-2) over it; moments: from the mean of r_j / r_k; ldreg: as LDReg's code,
    which is too high."""
    quantile_rows: int = Field(default=32768, ge=10, le=1_000_000)
    """Rows that quantiles are made of: all, or so many drawn without replacement."""


class Result(Frozen):
    """What was found. None without rows that have a dimension."""

    n_rows: int
    n_duplicate: int
    """Rows at distance 0 from another."""
    n_few: int
    """Rows with less than k others."""
    n_tied: int
    """Rows without a positive finite dimension, as all their neighbours are as far, or nearly, for ldreg."""
    k: int
    geometric_mean: float | None
    """As LDReg takes the dimension of all rows."""
    harmonic_mean: float | None
    median: float | None
    spread_of_noise: float
    """Standard deviation of a row's estimate over its dimension, where rows are uniform: what is wider differs from row to row."""
    relative_spread: float | None
    """Standard deviation over the mean of the rows' estimates."""
    n_quantile: int
    """Rows of the quantiles."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the artifact has less than 4 neighbours per row.
    """
    k = int(inputs.results["neighbours"]["k"])
    if k < 4:
        raise MethodError(
            f"the artifact has {k} neighbours per row, a dimension per row needs at least 4: raise its k"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return {"dimension": RowOutput("float64")}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The estimate of each row that has one."""
    distance = block.aligned["neighbours"]["distance"]
    used = numerics.usable(distance)
    found = torch.full_like(distance[:, 0], math.nan)
    found[used] = numerics.local(distance[used], config.estimator)
    return {"dimension": found.masked_fill(~(found > 0) | found.isinf(), math.nan)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Counts, sums over rows, and a sample for quantiles."""
    distance, found = block.aligned["neighbours"]["distance"], outputs["dimension"]
    there, zero = torch.isfinite(found), distance[:, 0] == 0
    few = ~zero & ~numerics.usable(distance)
    d = found[there]
    drawn = row_sample.of_rows(block.index[there], d[:, None], config.quantile_rows)
    counts = {"n": there | True, "duplicate": zero, "few": few, "told": there}
    sums = {"log": d.log(), "inverse": 1 / d, "sum": d, "square": d.square()}
    return {name: values.sum() for name, values in (counts | sums).items()} | drawn


def merge(a: State, b: State) -> State:
    """Both."""
    drawn = row_sample.merge(a, b)
    return {name: a[name] + b[name] for name in a if name not in drawn} | drawn


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Means of the sums, quantiles of the sample."""
    n, told, k = int(state["n"]), int(state["told"]), int(inputs.results["neighbours"]["k"])
    few = int(state["duplicate"] + state["few"])
    drawn = row_sample.values(state)[:, 0].cpu()
    shares = torch.tensor(SHARES, dtype=torch.float64)
    quantile = torch.quantile(drawn, shares) if told else torch.full_like(shares, math.nan)
    mean = float(state["sum"]) / told if told else math.nan
    variance = float(state["square"]) / told - mean**2 if told else math.nan
    result = Result(
        n_rows=n,
        n_duplicate=int(state["duplicate"]),
        n_few=int(state["few"]),
        n_tied=n - told - few,
        k=k,
        geometric_mean=math.exp(float(state["log"]) / told) if told else None,
        harmonic_mean=told / float(state["inverse"]) if told else None,
        median=float(quantile[2]) if told else None,
        spread_of_noise=1 / math.sqrt(k - 3),
        relative_spread=math.sqrt(max(0.0, variance)) / mean if told else None,
        n_quantile=len(drawn),
    )
    return result, {"share": Array(shares, ARRAYS["share"]), "quantile": Array(quantile, ARRAYS["quantile"])}

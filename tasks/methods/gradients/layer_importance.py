"""How much a layer changes what passes through it: the cosine of its input and its output, row by row.

A layer whose output points where its input points is close to the identity; the cosine is the importance by which constrained fine-
tuning decides how many directions of the layer's weights it protects (see `gradients.protected_directions`).
"""

import math

import torch

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort, State

VERSION = 1
KIND = "reduce"
READS = {"x": RowsPort(), "y": RowsPort()}
ARRAYS = {"cosine_histogram": ("bin",)}
REFERENCE = (
    "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning (2025): importance of a layer as the cosine of "
    "its input and output activations; the mean over rows, not over samples, is a choice of this project"
)
SEEDS = (233,)
BINS = 40


class Config(Frozen):
    """No options."""


class Result(Frozen):
    """Cosines lie in [-1, 1]; None without rows."""

    n_rows: int
    width: int
    cosine: float | None
    """Mean over rows: the importance, before layers are scaled to a mean of 1."""
    cosine_std: float | None
    cosine_error: float | None
    """Standard error of the mean, rows taken as independent; tokens of one text are not."""
    cosine_null_std: float
    """Spread of the cosine of random directions, 1 / sqrt(features), about 0."""
    zero_rows: int
    """Rows where either is zero, left out."""


def check(inputs: Inputs, config: Config) -> None:
    """Refuse sides of different widths.

    Raises:
        MethodError: if they differ.
    """
    if inputs.widths["x"] != inputs.widths["y"]:
        raise MethodError(
            f"input and output have {inputs.widths['x']} and {inputs.widths['y']} features: their cosine needs one width; take "
            f"a whole block"
        )


def start(inputs: Inputs, config: Config) -> State:
    """Nothing is carried."""
    return {}


def partial(block: Block, carry: State, config: Config) -> State:
    """Sums of the cosines of some rows, about which they scatter."""
    x, y = block["x"].double(), block["y"].double()
    norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    good = norms > 0
    cosine = ((x * y).sum(1)[good] / norms[good]).clamp(-1, 1).cpu()
    n, mean = float(len(cosine)), float(cosine.mean()) if len(cosine) else 0.0
    return {
        "moments": torch.tensor([n, mean, float((cosine - mean).square().sum())], dtype=torch.float64),
        "rows": torch.tensor(len(good)),
        "histogram": torch.histc(cosine, BINS, -1, 1),
    }


def merge(a: State, b: State) -> State:
    """Means and squares of both (Chan, Golub, LeVeque 1979)."""
    (n, mean, square), (m, other, more) = a["moments"].tolist(), b["moments"].tolist()
    total = n + m
    apart = other - mean
    moments = (
        [total, mean + apart * m / total, square + more + apart**2 * n * m / total]
        if total
        else [0.0, 0.0, 0.0]
    )
    return {
        "moments": torch.tensor(moments, dtype=torch.float64),
        "rows": a["rows"] + b["rows"],
        "histogram": a["histogram"] + b["histogram"],
    }


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The mean cosine and its spread."""
    n, mean, square = state["moments"].tolist()
    spread = math.sqrt(square / (n - 1)) if n > 1 else None
    return Result(
        n_rows=int(state["rows"]),
        width=inputs.widths["x"],
        cosine=mean if n else None,
        cosine_std=spread,
        cosine_error=None if spread is None else spread / math.sqrt(n),
        cosine_null_std=inputs.widths["x"] ** -0.5,
        zero_rows=int(state["rows"]) - int(n),
    ), {"cosine_histogram": Array(state["histogram"], ARRAYS["cosine_histogram"])}

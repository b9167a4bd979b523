"""Principal components of a trajectory beside those of a random walk, which look as orderly.

Rows are steps in order, such as the weights of a recorded training. A walk of independent steps puts 61 % of its variance into one
component and draws Lissajous curves: only what goes beyond that says something of the training.
"""

import math

import torch
from pydantic import Field

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import steps as steps_of
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import gram, walk
from tasks.numerics.gram import Components

VERSION = 2
KIND = "whole"
READS = {"x": RowsPort(labels=True)}
ARRAYS = {
    "share": ("component",),
    "null_share": ("component",),
    "null_low": ("component",),
    "null_high": ("component",),
    "cosine_match": ("component",),
    "projection": ("row", "component"),
    "step": ("row",),
}
REFERENCE = (
    "Antognini, Sohl-Dickstein: PCA of high dimensional random walks with comparison to neural network training, NeurIPS 2018, "
    "equations 8 and 9 (shares), section 3 (cosines)"
)
SEEDS = (183,)
MAX_ROWS = 4096


class Config(Frozen):
    """How many components, and how the null is drawn."""

    components: int = Field(default=10, ge=1, le=100)
    """Shown, and compared with the walk."""
    draws: int = Field(default=50, ge=10, le=1000)
    """Simulated walks, for the band of the null."""
    seed: int = 0
    """Of the simulated walks."""


class Result(Frozen):
    """Shares of variance lie in [0, 1]."""

    n_rows: int
    """Positions of the trajectory."""
    width: int
    first_share: float | None
    """Of the first component; None without variance."""
    first_share_null: float | None
    """Of the first component of a walk of independent steps."""
    step_dimension: float | None
    """Participation ratio of the steps about their mean: dimensions that a walk of such steps has; the band of the null is drawn with
    it. None where all steps are equal; then a walk of many dimensions is the null."""
    exceeds_null: tuple[bool, ...]
    """Whether the share of each component lies above the band."""
    lissajous: float | None
    """Mean over the first three components of the squared correlation of projections with the walk's cosines: 1 for a walk."""
    straightness: float | None
    """Distance from first to last position over the length of the path: 1 for a straight line, about 1 / sqrt(steps) for a walk."""
    straightness_null: float | None
    residual: float
    """Of the eigendecomposition."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Positions that are taken at once."""
    return MAX_ROWS


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Components of the positions, and the null.

    Raises:
        MethodError: for fewer than three positions.

    Cost: row^2 feature + row^3, and as much for each simulated walk with at most 1,024 features.
    """
    x = block["x"][torch.argsort(block.index)]
    if len(x) < 3:
        raise MethodError(f"found {len(x)} positions; a trajectory of at least 3 is needed")
    found = gram.components(x, center=True)
    steps = x[1:].double() - x[:-1].double()
    dimension = gram.participation(steps, center=True)
    arrays = _arrays(found, len(x), dimension or math.inf, config) | {"step": steps_of.in_order(block)}
    return _result(x, found, steps, dimension, arrays), {
        name: Array(values, ARRAYS[name]) for name, values in arrays.items()
    }


def _arrays(found: Components, n: int, dimension: float, config: Config) -> dict[str, torch.Tensor]:
    k = min(config.components, n - 1)
    share = torch.zeros(k, dtype=torch.float64)
    kept = min(k, len(found.variances))
    share[:kept] = found.variances[:kept].cpu() / found.total if found.total else 0.0
    simulated = walk.simulated_shares(n, dimension, k, config.draws, config.seed)
    scores = found.scores[:, :kept].cpu()
    match = torch.zeros(k, dtype=torch.float64)
    match[:kept] = (
        torch.stack([(scores[:, c] @ walk.cosine(n, c + 1)).square() for c in range(kept)]) if kept else 0
    )
    projection = torch.zeros(n, k, dtype=torch.float64)
    projection[:, :kept] = scores * found.variances[:kept].cpu().sqrt()
    return {
        "share": share,
        "null_share": walk.expected_shares(n, k),
        "null_low": simulated.quantile(0.025, dim=0),
        "null_high": simulated.quantile(0.975, dim=0),
        "cosine_match": match,
        "projection": projection,
    }


def _result(
    x: torch.Tensor,
    found: Components,
    steps: torch.Tensor,
    dimension: float | None,
    arrays: dict[str, torch.Tensor],
) -> Result:
    moves = bool(found.total > 0)
    length = float(torch.linalg.vector_norm(steps, dim=1).sum())
    distance = float(torch.linalg.vector_norm(x[-1].double() - x[0].double()))
    return Result(
        n_rows=len(x),
        width=x.shape[1],
        first_share=float(arrays["share"][0]) if moves else None,
        first_share_null=float(arrays["null_share"][0]) if moves else None,
        step_dimension=dimension,
        exceeds_null=tuple((arrays["share"] > arrays["null_high"]).tolist()) if moves else (),
        lissajous=float(arrays["cosine_match"][:3].mean()) if moves else None,
        straightness=distance / length if length else None,
        straightness_null=(len(x) - 1) ** -0.5 if length else None,
        residual=found.residual,
        caveats=() if moves else ("all positions are the same: there is nothing to describe",),
    )

"""How much of every row lies outside the subspace of normal rows, against what the network's last layer says of it.

Connect rows at the input of the last linear layer at x, and at `normal` the artifact of an `anomaly.head_subspace` stage over normal rows
there. The score is the length outside the subspace, scaled to logits, less the logsumexp of the row's logits. Arrays: `score` (row),
larger for stranger rows; `residual` (row), the length outside alone.
"""

from typing import Literal

import torch
from torch import Tensor

from schemas.base import Frozen
from tasks.methods import anomaly_scores
from tasks.methods.anomaly.head_subspace import outside_of
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

__all__ = ["merge"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "normal": ArtifactPort("anomaly.head_subspace", one_place=True)}
ARRAYS = {"score": ("row",), "residual": ("row",)}
REFERENCE = (
    "Wang, Li, Feng, Zhang, ViM: out-of-distribution with virtual-logit matching, CVPR (2022), equations 4 to 7; score: energy: Liu, Wang, "
    "Owens, Li, Energy-based out-of-distribution detection, NeurIPS (2020)"
)
SEEDS = ()


class Config(Frozen):
    """Which of the three scores counts."""

    score: Literal["vim", "residual", "energy"] = "vim"
    """Both together; the length outside alone; the logits alone."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    scale: float
    """Of the length outside."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS | {"residual": RowOutput("float64")}


def start(inputs: Inputs, config: Config) -> State:
    """Subspace and layer, float64."""
    given = inputs.artifacts["normal"]
    kept = {name: given[name].double() for name in ("origin", "components", "weight", "bias")}
    scale = float(inputs.results["normal"]["scale"])
    return kept | {"scale": torch.tensor(scale, dtype=torch.float64, device=kept["origin"].device)}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row, and its length outside.

    Raises:
        MethodError: for rows that are not finite.
    """

    def outside(x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(outside_of(x, carry), dim=1)
        return found

    def energy(x: Tensor) -> Tensor:
        return -(x @ carry["weight"].T + carry["bias"]).logsumexp(1)

    residual = anomaly_scores.scored(block["x"], outside)
    if config.score == "residual":
        return {"score": residual, "residual": residual}
    said = anomaly_scores.scored(block["x"], energy)
    return {
        "score": said if config.score == "energy" else carry["scale"] * residual + said,
        "residual": residual,
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    result = Result(
        scale=float(carry["scale"]),
        caveats=tuple(inputs.results["normal"]["caveats"]),
        **anomaly_scores.summary(state),
    )
    return result, {}

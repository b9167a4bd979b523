"""How far every row lies from its k-th nearest normal row.

Connect rows at x and at `normal` the artifact of an `anomaly.normal_rows` stage over normal rows of the same site. Distances are exact to
those rows, taken of differences; rows are brought to unit length where those were. Array: `score` (row), units of the rows (or of
directions, at most 2), larger for stranger rows. A row that is itself among the normal rows counts as its own neighbour.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly.normal_rows import unit_length
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import neighbours

__all__ = ["merge"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "normal": ArtifactPort("anomaly.normal_rows", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = "Sun, Ming, Zhu, Li, Out-of-distribution detection with deep nearest neighbors, ICML (2022): k-th distance, rows of unit length"
SEEDS = ()


class Config(Frozen):
    """Which neighbour."""

    k: int = Field(default=50, ge=1)
    """The k-th nearest counts."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    n_normal: int
    """Rows that were searched."""
    k: int
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are fewer normal rows than k.
    """
    kept = int(inputs.results["normal"]["n_rows"])
    if config.k > kept:
        raise MethodError(
            f"the {config.k}-th nearest of {kept} normal rows was asked for; keep more rows, or lower k"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """The normal rows."""
    unit = torch.tensor(bool(inputs.results["normal"]["unit_length"]))
    return {"rows": inputs.artifacts["normal"]["rows"].double(), "unit": unit}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.

    Cost: 2 row normal feature flops in float32, and k feature differences in float64 for each row.
    """
    y = carry["rows"]
    named = torch.arange(len(y), device=y.device)

    def score(x: Tensor) -> Tensor:
        x = unit_length(x) if bool(carry["unit"]) else x
        others = len(y) + torch.arange(len(x), device=x.device)  # no row is one of the normal ones by name
        found = neighbours.nearest(neighbours.none_yet(len(x), config.k, x.device), x, others, y, named)
        return found.distance[:, -1]

    return {"score": anomaly_scores.scored(block["x"], score)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    normal = inputs.results["normal"]
    result = Result(
        n_normal=int(normal["n_rows"]),
        k=config.k,
        caveats=tuple(normal["caveats"]),
        **anomaly_scores.summary(state),
    )
    return result, {}

"""How little of every row lies along the few directions that a network's collapsed classes span.

Connect rows at the input of the last linear layer at x, and at `normal` the artifact of an `anomaly.standard_components` stage over normal
rows there. With z the row in standard deviations about the mean, the score is minus |leading directions' part of z| / |z|, times the
largest logit where that is asked for. Array: `score` (row), larger for stranger rows; rows at the mean, which point nowhere, score 0.
Scaling features changes nothing but by the logit.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores, last_layer
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.methods.last_layer import parameters

__all__ = ["merge", "parameters"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "normal": ArtifactPort("anomaly.standard_components", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "Ben Ammar, Belkhir, Popescu, Manzanera, Franchi, NECO: neural collapse based out-of-distribution detection, ICLR (2024): energy in "
    "leading components over the whole, times the largest logit"
)
SEEDS = (31,)


class Config(Frozen):
    """How many directions, and whether logits take part."""

    components: int | None = Field(default=None, ge=1)
    """Leading directions; None: outputs of the last layer less one, what collapsed classes span."""
    logit: bool = True
    """Times the largest logit."""
    weight: str = "{module}.weight"
    """Of the last layer; `{module}` is the module of the site."""
    bias: str | None = "{module}.bias"
    """Of the last layer; None: it has none."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    components: int
    explained: float | None
    """Share of the normal rows' variance that they hold; None where nothing varies."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, or there are no more features than components.
    """
    last_layer.check(inputs, config)
    width = inputs.widths["x"]
    if _n_components(inputs, config) >= width:
        raise MethodError(
            f"asked for {_n_components(inputs, config)} of {width} features, which hold all of every row; set `components` lower"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """The frame and the layer, float64."""
    given = inputs.artifacts["normal"]
    kept = given["components"][: _n_components(inputs, config)].double()
    frame = {"mean": given["mean"].double(), "scale": given["scale"].double(), "components": kept}
    return frame | last_layer.read(inputs, config)._asdict()


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """

    def score(x: Tensor) -> Tensor:
        z = (x - carry["mean"]) / carry["scale"]
        length = torch.linalg.vector_norm(z, dim=1)
        ratio = torch.linalg.vector_norm(z @ carry["components"].T, dim=1) / torch.where(
            length > 0, length, 1.0
        )
        found: Tensor = -(ratio * (x @ carry["weight"].T + carry["bias"]).amax(1)) if config.logit else -ratio
        return found

    return {"score": anomaly_scores.scored(block["x"], score)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    values, kept = inputs.artifacts["normal"]["eigenvalue"], len(carry["components"])
    result = Result(
        components=kept,
        explained=float(values[:kept].sum() / values.sum()) if float(values.sum()) > 0 else None,
        caveats=tuple(inputs.results["normal"]["caveats"]),
        **anomaly_scores.summary(state),
    )
    return result, {}


def _n_components(inputs: Inputs, config: Config) -> int:
    return config.components or max(1, len(inputs.weights[config.weight]) - 1)

"""How large the gradient of a network's last layer would be for every row, from the row and its logits alone.

Connect rows at the input of the last linear layer at x, and at `basis` the artifact of a `spectrum.pca` stage over normal rows there with
`center: false`. The gradient of a cross entropy for the layer's weights is an outer product of an error of the logits and the row, so that
its norms are products of norms and no backward is run. `grad_norm`: the L1 norm |p - u|_1 |x|_1 / T for uniform targets u, which networks
have learned to make large for what they know; `grad_orth`: the L2 norm of its part along the directions V that normal rows fill,
|p - u|_2 |V x|_2 / T; `angle`: |V x| / |x|, which takes no logits. Array: `score` (row), these with their sign turned, so that larger is
stranger; 0 for rows of zeros by `angle`.
"""

from typing import Literal

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
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.pca", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "grad_norm: Huang, Geng, Li, On the importance of gradients for detecting distributional shifts in the wild, NeurIPS (2021), equation "
    "6 (the mean over classes). grad_orth: Behpour et al., GradOrth, NeurIPS (2023), as told by others: its text was not read"
)
SEEDS = ()


class Config(Frozen):
    """Which norm, and of what."""

    score: Literal["grad_norm", "grad_orth", "angle"] = "grad_norm"
    """See above."""
    energy: float = Field(default=0.97, gt=0, le=1)
    """Share of the normal rows' second moment that V holds: the fewest directions that reach it. Not of `grad_norm`."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    weight: str = "{module}.weight"
    """Of the last layer; `{module}` is the module of the site."""
    bias: str | None = "{module}.bias"
    """Of the last layer; None: it has none."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    components: int
    """Of V; 0 where it takes no part."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the parameter is no finite linear map of the site's features, or the basis is about a mean or holds too little.
    """
    last_layer.check(inputs, config)
    if config.score == "grad_norm":
        return
    if inputs.results["basis"]["centred"]:
        raise MethodError(
            "the basis is about the mean; make it with `center: false`: gradients are products with rows as they are"
        )
    anomaly_scores.check_energy(inputs, config.energy)


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """The layer and the directions, float64."""
    kept = 0 if config.score == "grad_norm" else anomaly_scores.components_for(inputs, config.energy)
    return {
        **last_layer.read(inputs, config)._asdict(),
        "components": inputs.artifacts["basis"]["components"][:kept].double(),
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """
    return {"score": anomaly_scores.scored(block["x"], lambda x: -_size(x, carry, config))}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    result = Result(components=len(carry["components"]), caveats=(), **anomaly_scores.summary(state))
    return result, {}


def _size(x: Tensor, carry: State, config: Config) -> Tensor:
    """[row]: of the gradient."""
    along = torch.linalg.vector_norm(x @ carry["components"].T, dim=1)
    if config.score == "angle":
        length = torch.linalg.vector_norm(x, dim=1)
        angle: Tensor = along / torch.where(length > 0, length, 1.0)
        return angle
    logits = (x @ carry["weight"].T + carry["bias"]) / config.temperature
    off = (logits.softmax(1) - 1 / logits.shape[1]) / config.temperature
    if config.score == "grad_norm":
        return off.abs().sum(1) * x.abs().sum(1)
    size: Tensor = torch.linalg.vector_norm(off, dim=1) * along
    return size

"""How many standard deviations every row lies from the nearest class of normal rows.

Connect rows at x and at `reference` the artifact of an `anomaly.reference` stage over normal rows of the same site. The score is the least
over classes of (x - mean)' S^-1 (x - mean); with `relative` less the same distance from all normal rows alike, which takes away what all
classes have in common. Arrays: `score` (row), squared standard deviations, larger for stranger rows (relative ones may be negative);
`nearest` (row), the code of that class, -1 without classes. An invertible linear map of all rows changes nothing where nothing is shrunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

__all__ = ["merge"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "reference": ArtifactPort("anomaly.reference", one_place=True)}
ARRAYS = {"score": ("row",), "nearest": ("row",)}
REFERENCE = (
    "Lee, Lee, Lee, Shin, A simple unified framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS (2018), "
    "equation 2. relative: Ren, Fort, Liu, Roy, Padhy, Lakshminarayanan, A simple fix to Mahalanobis distance for improving near-OOD "
    "detection (2021), equation 3, with one divisor and one shrinkage rule on both sides"
)
SEEDS = ()


class Config(Frozen):
    """From what distances are taken."""

    relative: bool = False
    """Take away the distance from all normal rows; needs classes."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    n_classes: int
    """Of the normal rows."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for relative distances without classes.
    """
    classes = int(inputs.results["reference"]["n_classes"])
    if config.relative and classes < 2:
        raise MethodError(
            f"relative distances compare classes with all rows, the reference has {classes}; make it with a label, or leave `relative` out"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS | {"nearest": RowOutput("int64")}


def start(inputs: Inputs, config: Config) -> State:
    """Means where normal rows are white, and what whitens."""
    given = inputs.artifacts["reference"]
    kept = {"code": given["code"], "mean": given["mean"].double(), "whitening": given["whitening"].double()}
    if config.relative:
        kept |= {name: given[name].double() for name in ("background_mean", "background_whitening")}
    return kept


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row, and its class.

    Raises:
        MethodError: for rows that are not finite.
    """
    nearest: list[Tensor] = []

    def score(x: Tensor) -> Tensor:
        found = _nearest(x, carry)
        nearest.append(carry["code"][found.place])
        if not config.relative:
            return found.distance
        apart = (x - carry["background_mean"]) @ carry["background_whitening"].T
        return found.distance - apart.square().sum(1)

    scores = anomaly_scores.scored(block["x"], score)
    none = torch.zeros(0, dtype=torch.int64, device=scores.device)
    return {"score": scores, "nearest": torch.cat([none, *nearest])[: len(scores)]}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    reference = inputs.results["reference"]
    result = Result(
        n_classes=int(reference["n_classes"]),
        caveats=tuple(reference["caveats"]),
        **anomaly_scores.summary(state),
    )
    return result, {}


class _Nearest(NamedTuple):
    """Of each row."""

    place: Tensor
    distance: Tensor


def _nearest(x: Tensor, carry: State) -> _Nearest:
    """The nearest mean, found by products; its distance by the difference itself."""
    shift = carry["mean"].mean(0)
    white, means = ((rows - shift) @ carry["whitening"].T for rows in (x, carry["mean"]))
    place = (means.square().sum(1) - 2 * white @ means.T).argmin(1)
    return _Nearest(place, (white - means[place]).square().sum(1))

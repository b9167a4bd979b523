"""How far every row lies along the direction from one class of rows to another: a guard on a concept.

Connect rows at x and at `reference` the artifact of an `anomaly.reference` stage over rows with a label, such as harmful and harmless
requests, at the same site. The direction is the difference of the two class means; the score is the row's coordinate on it, 0 half way
and 1 at the wanted class's mean. Array: `score` (row), larger for rows nearer to the wanted class. A threshold comes from calibration on
rows of the other class that took no part in the means.

One linear direction is no guarantee: networks can learn to move what they hold out of its way. Guard several sites, and look at drift.
"""

from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError, nearest
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

__all__ = ["merge"]

VERSION = 1
KIND = "map"
READS = {"x": RowsPort(), "reference": ArtifactPort("anomaly.reference", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "Difference of class means as a concept's direction: LLMs encode harmfulness and refusal separately (2025), latent guard, from its "
    "abstract; limits: Neural Chameleons: language models can learn to hide their thoughts from unseen activation monitors (2025)"
)
SEEDS = (161,)


class Config(Frozen):
    """From where to where."""

    towards: str | None = Field(default=None)
    """The class at whose mean the score is 1; None: the last."""
    away: str | None = Field(default=None)
    """The class at whose mean it is -1; None: the mean of the means of all others."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    towards: str
    away: str
    """The class, or `all others`."""
    distance: float
    """Between both means."""
    separation: float
    """Mahalanobis distance between both, by the (shrunk) covariance inside classes: standard deviations along the best direction."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: without two classes, for a class that is not there, or two classes with one mean.
    """
    classes = inputs.results["reference"]["classes"]
    if len(classes) < 2:
        raise MethodError(
            f"a direction leads from one class to another, the reference has {len(classes)}; make it with a label"
        )
    for name in (config.towards, config.away):
        if name is not None and name not in classes:
            raise MethodError(f"the reference has no class {name!r}; nearest: {nearest(name, classes)}")
    if config.away is not None and config.away == (config.towards or classes[-1]):
        raise MethodError(f"both ends are the class {config.away!r}; name another")
    if not float(_ends(inputs, config)[0].square().sum()) > 0:
        raise MethodError("both ends have the same mean, so that there is no direction; look at the site")


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """Half the difference of the means, and the middle, float64."""
    half, middle = _ends(inputs, config)
    return {"half": half, "middle": middle}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """
    along = carry["half"] / carry["half"].square().sum()
    return {"score": anomaly_scores.scored(block["x"], lambda x: (x - carry["middle"]) @ along)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The direction, and a summary of the scores."""
    reference, half = inputs.results["reference"], carry["half"]
    whitened = inputs.artifacts["reference"]["whitening"].double() @ (2 * half)
    result = Result(
        towards=config.towards or reference["classes"][-1],
        away=config.away or "all others",
        distance=2 * float(half.norm()),
        separation=float(whitened.norm()),
        caveats=tuple(reference["caveats"]),
        **anomaly_scores.summary(state),
    )
    return result, {}


def _ends(inputs: Inputs, config: Config) -> tuple[Tensor, Tensor]:
    """Half of the way from one mean to the other, and its middle."""
    classes = list(inputs.results["reference"]["classes"])
    means = inputs.artifacts["reference"]["mean"].double()
    towards = classes.index(config.towards) if config.towards is not None else len(classes) - 1
    others = [n for n in range(len(classes)) if n != towards]
    away = means[others].mean(0) if config.away is None else means[classes.index(config.away)]
    return (means[towards] - away) / 2, (means[towards] + away) / 2

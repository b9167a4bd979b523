"""How far every row lies along the direction from one class of rows to another: a guard on a concept.

Connect rows at x and at `reference` the artifact of an `anomaly.reference` stage over rows with a label, such as harmful and harmless
requests, at the same site. The direction is the difference of the two class means; the score is the row's coordinate on it, 0 half way
and 1 at the wanted class's mean. Array: `score` (row), larger for rows nearer to the wanted class. A threshold comes from calibration on
rows of the other class that took no part in the means.

Classes vary most along the leading principal directions of the covariance inside them, and what tells classes apart may lie along these or
outside. `within: principal` or `residual` takes the part of the direction that lies in them or in all others; the score is still 1 and
-1 at both means. `principal_distance` and `principal_separation` tell how much of the difference lies in the leading ones, whatever is
taken.

One linear direction is no guarantee: networks can learn to move what they hold out of its way. Guard several sites, and look at drift.
"""

from typing import Literal, NamedTuple

from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError, nearest
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import energy

__all__ = ["merge"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "reference": ArtifactPort("anomaly.reference", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "Difference of class means as a concept's direction: LLMs encode harmfulness and refusal separately (2025), latent guard, from its "
    "abstract; limits: Neural Chameleons: language models can learn to hide their thoughts from unseen activation monitors (2025). "
    "Principal and residual part: Effort: efficient orthogonal modeling for generalizable AI-generated image detection (2024), whose "
    "abstract splits weights by their singular values and trains the residual part alone; here features are split, and nothing is trained"
)
SEEDS = (133, 161)
NOTHING = 1e-9
"""Length of a part of the direction, over all of it, below which it is rounding."""


class Config(Frozen):
    """From where to where."""

    towards: str | None = Field(default=None)
    """The class at whose mean the score is 1; None: the last."""
    away: str | None = Field(default=None)
    """The class at whose mean it is -1; None: the mean of the means of all others."""
    within: Literal["all", "principal", "residual"] = "all"
    """The whole direction, or its part in the leading principal directions of the covariance inside classes, or outside of them."""
    energy: float = Field(default=0.9, gt=0, lt=1)
    """Share of the variance inside classes that the leading ones hold together: the fewest that reach it."""
    components: int | None = Field(default=None, ge=1)
    """So many instead."""


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
    components: int
    """Leading principal directions."""
    principal_distance: float | None
    """Share of the squared distance between both means that lies in them; None, as below, where the covariance is shrunk to the same
    variance in every direction."""
    principal_separation: float | None
    """Share of the squared separation that lies in them."""
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
    half, _ = _ends(inputs, config)
    if not float(half.square().sum()) > 0:
        raise MethodError("both ends have the same mean, so that there is no direction; look at the site")
    _check_part(half, inputs, config)


def _check_part(half: Tensor, inputs: Inputs, config: Config) -> None:
    reference = inputs.results["reference"]
    if config.components is not None and config.components > reference["rank"]:
        raise MethodError(
            f"classes vary along {reference['rank']} directions, asked for {config.components}; ask for fewer"
        )
    if config.within == "all":
        return
    parts = _parts(half, inputs, config)
    if parts is None:
        raise MethodError(
            "the reference's covariance is shrunk to the same variance in every direction, none of which is principal; make it of more "
            "rows, or with `shrinkage: none`"
        )
    if not float(parts.of(config.within).norm()) > NOTHING * float(half.norm()):
        raise MethodError(
            f"both ends have the same mean in the {config.within} part of {parts.components} principal directions; take another part, or "
            "another `energy`"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """Half the difference of the means, its part that is taken, and the middle, float64."""
    half, middle = _ends(inputs, config)
    parts = _parts(half, inputs, config)
    return {"half": half, "middle": middle, "part": half if parts is None else parts.of(config.within)}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """
    along = carry["part"] / carry["part"].square().sum()
    return {"score": anomaly_scores.scored(block["x"], lambda x: (x - carry["middle"]) @ along)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The direction, and a summary of the scores."""
    reference, half = inputs.results["reference"], carry["half"]
    whitening = inputs.artifacts["reference"]["whitening"].double()
    whitened, parts = (whitening @ (2 * half)).square(), _parts(half, inputs, config)
    n = _n_components(inputs, config)
    result = Result(
        towards=config.towards or reference["classes"][-1],
        away=config.away or "all others",
        distance=2 * float(half.norm()),
        separation=float(whitened.sum().sqrt()),
        components=n,
        principal_distance=None
        if parts is None
        else float(parts.principal.square().sum() / half.square().sum()),
        principal_separation=_share(whitened, n) if parts is not None else None,
        caveats=tuple(reference["caveats"]),
        **anomaly_scores.summary(state),
    )
    return result, {}


class _Parts(NamedTuple):
    """Of a direction."""

    whole: Float64[Tensor, " feature"]
    principal: Float64[Tensor, " feature"]
    components: int

    def of(self, within: str) -> Float64[Tensor, " feature"]:
        """The one that is asked for."""
        return {"all": self.whole, "principal": self.principal, "residual": self.whole - self.principal}[
            within
        ]


def _parts(half: Tensor, inputs: Inputs, config: Config) -> _Parts | None:
    """None where no direction is principal."""
    if inputs.results["reference"]["intensity"] >= 1:
        return None
    n = _n_components(inputs, config)
    rows = inputs.artifacts["reference"]["whitening"][:n].double()
    axes = rows / rows.norm(dim=1, keepdim=True)
    return _Parts(half, (axes @ half) @ axes, n)


def _n_components(inputs: Inputs, config: Config) -> int:
    """The rows of `whitening` are in the order of the eigenvalues, which shrinking does not change."""
    if config.components is not None:
        return config.components
    values = inputs.artifacts["reference"]["eigenvalue"].double().clamp(min=0)
    return min(energy.components(values, config.energy), int(inputs.results["reference"]["rank"]))


def _share(squares: Tensor, n: int) -> float | None:
    whole = float(squares.sum())
    return float(squares[:n].sum()) / whole if whole > 0 else None


def _ends(inputs: Inputs, config: Config) -> tuple[Tensor, Tensor]:
    """Half of the way from one mean to the other, and its middle."""
    classes = list(inputs.results["reference"]["classes"])
    means = inputs.artifacts["reference"]["mean"].double()
    towards = classes.index(config.towards) if config.towards is not None else len(classes) - 1
    others = [n for n in range(len(classes)) if n != towards]
    away = means[others].mean(0) if config.away is None else means[classes.index(config.away)]
    return (means[towards] - away) / 2, (means[towards] + away) / 2

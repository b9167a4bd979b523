"""How far every row lies outside the subspace that normal rows fill.

Connect rows at x and at `basis` the artifact of a `spectrum.pca` stage over normal rows of the same site: train there, score anywhere
(SubspaceAD on tokens or patches, DFM's feature reconstruction error on images). The score is |x - mean - V'V (x - mean)|^2, taken of that
difference itself, which keeps its digits where the difference of squared lengths loses them. Array: `score` (row), squared units of the
rows, larger for stranger rows; NaN for rows of failed samples. The sign of a component changes nothing, nor do other rows of a batch.
"""

from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

__all__ = ["merge"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.pca", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "SubspaceAD: training-free few-shot anomaly detection via subspace modeling (2026): squared residual outside the components that hold "
    "a share of the energy. Jackson, Mudholkar, Technometrics 21 (1979) 341: the Q statistic"
)
SEEDS = (121,)


class Config(Frozen):
    """How much of the normal rows' energy counts as normal."""

    energy: float = Field(default=0.99, gt=0, le=1)
    """Share of the variance of normal rows that the kept components hold together: the fewest that reach it."""
    components: int | None = Field(default=None, ge=0)
    """So many instead; 0: the squared distance from the mean."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    components: int
    """Of the subspace."""
    explained: float | None
    """Share of the normal rows' variance that they hold; None where these do not vary."""
    normal_mean: float
    """Mean score of the rows that the basis was made of: their variance outside, over rows - 1."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the basis is not about a mean, or has too few components for that.
    """
    basis, result = inputs.artifacts["basis"], inputs.results["basis"]
    if not result["centred"]:
        raise MethodError(
            "the basis is about the origin; make it with `center: true`, residuals are about the mean"
        )
    if config.components is None:
        anomaly_scores.check_energy(inputs, config.energy)
    elif config.components > len(basis["components"]):
        raise MethodError(
            f"the basis has {len(basis['components'])} components, asked for {config.components}; keep more in the pca stage"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """The mean and the kept components, float64."""
    basis = inputs.artifacts["basis"]
    kept = basis["components"][: _n_components(inputs, config)]
    return {"components": kept.double(), "mean": basis["mean"].double()}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """
    return {
        "score": anomaly_scores.scored(block["x"], lambda x: _outside(x - carry["mean"], carry["components"]))
    }


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    kept, basis = _n_components(inputs, config), inputs.results["basis"]
    share, trace = float(inputs.artifacts["basis"]["explained"][:kept].sum()), float(basis["trace"])
    outside = max(0.0, trace * (1 - share))
    notes = []
    if kept == basis["width"] or outside <= float(basis["floor"]):
        notes.append(
            "the components hold all that normal rows vary in: what of them lies outside is rounding, and any other row lies far; ask for "
            "less energy"
        )
    result = Result(
        components=kept,
        explained=share if trace > 0 else None,
        normal_mean=outside,
        caveats=tuple(notes),
        **anomaly_scores.summary(state),
    )
    return result, {}


def _outside(centred: Tensor, components: Tensor) -> Tensor:
    found: Tensor = (centred - (centred @ components.T) @ components).square().sum(1)
    return found


def _n_components(inputs: Inputs, config: Config) -> int:
    return (
        anomaly_scores.components_for(inputs, config.energy)
        if config.components is None
        else config.components
    )

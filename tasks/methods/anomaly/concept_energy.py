"""How much of every row lies inside the subspace of a concept, or in neurons that memorised samples share.

Connect rows at x and at `basis` the artifact of a `spectrum.pca` stage over rows of the concept at the same site, or of an
`anomaly.shared_neurons` stage. The score is |V(x - m)|^2 / |x - m|^2, between 0 and 1: the residual of `anomaly.residual` with its sign
turned, over the row's energy. m is the mean of the concept's rows, or the origin for a basis that was made with `center: false` and for
neurons; about the mean, rows far from the concept count by the direction in which they lie. Array: `score` (row), larger for rows more
inside the concept; 0 for a row at m. A threshold comes from calibration on rows without the concept.
"""

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State

__all__ = ["merge"]

VERSION = 1
KIND = "map"
READS = {
    "x": RowsPort(),
    "basis": ArtifactPort("spectrum.pca", others=("anomaly.shared_neurons",), one_place=True),
}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "Share of a row's energy in a subspace. Memorized images in diffusion models share a subspace that can be located and deleted (2024), "
    "from its abstract: a subspace of neurons that memorised samples activate; a score of rows by it is built here"
)
SEEDS = (264,)


class Config(Frozen):
    """How much of the concept's rows' energy makes the subspace; located neurons are taken all."""

    energy: float = Field(default=0.9, gt=0, le=1)
    """Share of the variance of the concept's rows that the kept components hold together: the fewest that reach it."""
    components: int | None = Field(default=None, ge=1)
    """So many instead."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    components: int
    """Of the subspace, or located neurons."""
    about_mean: bool
    """Whether energy is about the mean of the concept's rows."""
    by_chance: float
    """Score of rows with the same energy in every direction: components over features."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if there are too few components, or no located neurons.
    """
    basis = inputs.artifacts["basis"]
    if "located" in basis:
        if not bool(basis["located"].any()):
            raise MethodError("found no located neurons; look at the `anomaly.shared_neurons` stage")
        return
    if not float(inputs.results["basis"]["trace"]) > 0:
        raise MethodError("the concept's rows do not vary, so that they fill no subspace; look at the site")
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
    """Orthonormal rows and the point about which energy is told, float64."""
    basis = inputs.artifacts["basis"]
    if "located" in basis:
        chosen = torch.nonzero(basis["located"]).flatten()
        components = torch.zeros(
            len(chosen), len(basis["located"]), dtype=torch.float64, device=chosen.device
        )
        components[torch.arange(len(chosen), device=chosen.device), chosen] = 1.0
        return {"components": components, "mean": torch.zeros_like(components[0])}
    kept = config.components or anomaly_scores.components_for(inputs, config.energy)
    mean = basis["mean"].double()
    return {
        "components": basis["components"][:kept].double(),
        "mean": mean if _about_mean(inputs) else torch.zeros_like(mean),
    }


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """

    def score(x: Tensor) -> Tensor:
        off = x - carry["mean"]
        off = off / off.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        whole = off.square().sum(1)
        inside = (off @ carry["components"].T).square().sum(1)
        return (inside / torch.where(whole > 0, whole, 1.0)).clamp(max=1.0)

    return {"score": anomaly_scores.scored(block["x"], score)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    kept, width = carry["components"].shape
    notes = []
    if kept == width:
        notes.append("the subspace is all of the space: every row lies inside; ask for less energy")
    result = Result(
        components=kept,
        about_mean=_about_mean(inputs),
        by_chance=kept / width,
        caveats=tuple(notes),
        **anomaly_scores.summary(state),
    )
    return result, {}


def _about_mean(inputs: Inputs) -> bool:
    return bool(inputs.results["basis"].get("centred", False))

"""How far every row lies outside the directions of normal rows that stand out of noise, in the noise's own variance.

Connect rows at x and at `basis` the artifact of a `spectrum.pca` stage over normal rows of the same site, with components for all spikes.
Random matrix theory tells which eigenvalues noise of equal variance could not have made (spikes), how large they are without the noise's
bias, and the noise's variance. `outside` is the squared length beyond the spikes over the noise's variance: about features less spikes
for normal rows. `distance` adds squared coordinates along the spikes over their unbiased variances: a Mahalanobis distance that takes no
eigenvalue of the noise at its word. Array: `score` (row), larger for stranger rows.

EigenShield parts causal from correlational eigenvectors by a nonconformity of its own, whose formula was not read; it is not rebuilt here.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, merge
from tasks.methods.contract import Arrays, ArtifactPort, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics import white_noise

__all__ = ["merge"]

VERSION = 2
KIND = "map"
READS = {"x": RowsPort(), "basis": ArtifactPort("spectrum.pca", one_place=True)}
ARRAYS = {"score": ("row",)}
REFERENCE = (
    "EigenShield: causal subspace filtering via random matrix theory (2025): spiked covariance, projection off the noise. Spikes: Baik, "
    "Ben Arous, Peche, Annals of Probability 33 (2005) 1643; Paul, Statistica Sinica 17 (2007) 1617; edge: Johnstone, Annals of "
    "Statistics 29 (2001) 295"
)
SEEDS = (180,)
FEW = 10
"""Rows and features from which the law says anything."""


class Config(Frozen):
    """What counts, and how surely a spike must stand out."""

    score: Literal["outside", "distance"] = "outside"
    """See above."""
    confidence: float = Field(default=0.99, gt=0, lt=1)
    """Probability that noise alone has no eigenvalue beyond the edge."""


class Result(Frozen):
    """Scores of all rows."""

    n_rows: int
    spikes: int
    noise: float
    """Variance along every direction."""
    edge: float
    """Eigenvalue that noise stays below."""
    values: tuple[float, ...]
    """Of the spikes, without the noise's bias."""
    alignments: tuple[float, ...]
    """Squared cosines between the spikes' directions and those that more rows would give."""
    misfit: float
    """Largest difference between the shares of eigenvalues below and of the law of noise."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


class _Law(NamedTuple):
    """What is told of normal rows."""

    noise: float
    edge: float
    spikes: int
    values: Tensor
    alignments: Tensor
    misfit: float


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the basis is not about a mean, has not all eigenvalues or all spikes, or nothing tells noise from signal.
    """
    basis, result = inputs.artifacts["basis"], inputs.results["basis"]
    if not result["centred"]:
        raise MethodError("the basis is about the origin; make it with `center: true`")
    if len(basis["eigenvalue"]) < int(result["width"]):
        raise MethodError(
            f"the basis has {len(basis['eigenvalue'])} of {result['width']} eigenvalues, the law of noise takes all; make it with "
            "`engine: moments`"
        )
    law = _law(inputs, config)
    if law.spikes > len(basis["components"]):
        raise MethodError(
            f"{law.spikes} eigenvalues stand out of noise, the basis has {len(basis['components'])} components; keep more in the pca stage"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What every row gets."""
    return OUTPUTS


def start(inputs: Inputs, config: Config) -> State:
    """The mean, the spikes and what their coordinates weigh, float64."""
    basis, law = inputs.artifacts["basis"], _law(inputs, config)
    components = basis["components"][: law.spikes].double()
    weigh = law.values.reciprocal() if config.score == "distance" else torch.zeros_like(law.values)
    noise = torch.tensor(law.noise, dtype=torch.float64, device=components.device)
    return {"mean": basis["mean"].double(), "components": components, "weigh": weigh, "noise": noise}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of each row.

    Raises:
        MethodError: for rows that are not finite.
    """

    def score(x: Tensor) -> Tensor:
        centred = x - carry["mean"]
        along = centred @ carry["components"].T
        outside = (centred - along @ carry["components"]).square().sum(1) / carry["noise"]
        return outside + (along.square() * carry["weigh"]).sum(1)

    return {"score": anomaly_scores.scored(block["x"], score)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores."""
    return anomaly_scores.partial(outputs["score"])


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """The law, and a summary of the scores."""
    law, notes = _law(inputs, config), []
    if law.misfit > 0.1:
        notes.append(
            f"eigenvalues below the edge are {law.misfit:.2f} from those of noise of equal variance: some spikes are the noise's shape"
        )
    result = Result(
        spikes=law.spikes,
        noise=law.noise,
        edge=law.edge,
        values=tuple(law.values.tolist()),
        alignments=tuple(law.alignments.tolist()),
        misfit=law.misfit,
        caveats=tuple(notes),
        **anomaly_scores.summary(state),
    )
    return result, {}


def _law(inputs: Inputs, config: Config) -> _Law:
    values = inputs.artifacts["basis"]["eigenvalue"].double().nan_to_num(0.0)
    rows = float(inputs.results["basis"]["n_eff"]) - 1
    there = min(len(values), round(rows))
    if there < FEW or not float(values[there // 2]) > 0:
        raise MethodError(
            f"found {rows + 1:.0f} effective rows of {len(values)} features, of which half do not vary: expected at least {FEW} of both to "
            "tell noise from signal; capture more samples, or project the site"
        )
    noise = white_noise.level(values, rows)
    edge = noise * white_noise.largest(len(values), rows, config.confidence)
    signal = white_noise.signal(values, rows, noise)
    spikes = int((values > edge).sum())
    misfit = white_noise.misfit(values, rows, noise, spikes)
    return _Law(noise, edge, spikes, signal.value[:spikes], signal.alignment[:spikes], misfit)

"""What detectors share: one score for every row, larger for stranger rows, and a summary of all."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from schemas.errors import MethodError
from tasks.methods.contract import ArtifactPort, Block, Inputs, Made, RowOutput, State, along_rows
from tasks.numerics import moments

SCORES = (
    "anomaly.residual",
    "anomaly.mahalanobis",
    "anomaly.vim",
    "anomaly.neighbours",
    "anomaly.last_gradient",
    "anomaly.neco",
    "anomaly.spikes",
    "anomaly.direction",
    "anomaly.concept_energy",
    "anomaly.combined",
)
"""Methods that give every row a `score`."""
POOLED = "anomaly.pooled"
"""Gives one of a sample's rows the score of the sample, and the others NaN."""
OUTPUTS = {"score": RowOutput("float64")}
TILE_ROWS = 512
"""Rows are scored in tiles of exactly this size, filled up with zeros, so that no bit depends on how rows are cut."""


def scores_port(aligned: bool) -> ArtifactPort:
    """A port that takes the scores of any detector.

    Args:
        aligned: whether they come with the rows, or whole, with what is known of the rows that they are of.
    """
    return ArtifactPort(
        SCORES[0], others=(*SCORES[1:], POOLED), aligned=aligned, one_width=not aligned, of_rows=not aligned
    )


def own_scores_port() -> ArtifactPort:
    """A port that takes the scores of the rows themselves, whole."""
    return ArtifactPort(SCORES[0], others=(*SCORES[1:], POOLED), own_rows=True, of_rows=True)


def scores_of(block: Block) -> Float64[Tensor, " row"]:
    """What a detector gave the rows of a block, at the port `scores`; NaN for rows that have none because their sample has one.

    Raises:
        MethodError: for another score that is NaN.
    """
    return checked_scores(block.aligned["scores"], block.index)


def checked_scores(arrays: Mapping[str, Tensor], index: Int64[Tensor, " row"]) -> Float64[Tensor, " row"]:
    """The scores among some row-aligned arrays of a detector: see `scores_of`.

    Args:
        arrays: `score`, and `first` where scores are of samples.
        index: of the rows, for messages.

    Raises:
        MethodError: for a score that is NaN, naming its row.
    """
    score = arrays["score"].double()
    wrong = score.isnan() & (arrays["first"].bool() if "first" in arrays else True)
    if bool(wrong.any()):
        raise MethodError(
            f"row {int(index[wrong][0])} has the score NaN though its sample did not fail; the detector's stage is at fault"
        )
    return score


def rows_of(made: Made, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a detector that `checked_scores` takes, of the rows that `made.over` tells, from all of the artifact's."""
    assert made.over is not None  # its port asks for it
    several = len(made.captures) > 1
    names = [
        name for name in ("score", "first") if (f"{made.captures[0]}/{name}" if several else name) in arrays
    ]
    return {name: along_rows(arrays, made.captures, name)[made.over.block.index] for name in names}


def check_energy(inputs: Inputs, energy: float) -> None:
    """Refuse a basis whose components hold less than a share of the variance.

    Raises:
        MethodError: with what they hold.
    """
    available = len(inputs.artifacts["basis"]["components"])
    if components_for(inputs, energy) > available:
        share = float(inputs.artifacts["basis"]["explained"].sum()) if available else 0.0
        raise MethodError(
            f"the basis has {available} components that hold {share:.4f} of the variance, asked for {energy:g} of it; keep more in the pca "
            f"stage, at most {int(inputs.results['basis']['width'])}"
        )


def components_for(inputs: Inputs, energy: float) -> int:
    """The fewest leading components of a `spectrum.pca` artifact that hold a share of the variance; one more than there are where all that
    were kept hold less, and there are others."""
    basis, explained = inputs.results["basis"], inputs.artifacts["basis"]["explained"].double()
    if float(basis["trace"]) <= 0:
        return 0
    below = int((explained.cumsum(0) < energy * (1 - 1e-12)).sum())
    if below < len(explained):
        return below + 1
    return len(explained) if len(explained) >= int(basis["resolved"]) else len(explained) + 1


def scored(
    x: Float[Tensor, "row feature"],
    score: Callable[[Float64[Tensor, "tile feature"]], Float64[Tensor, " tile"]],
) -> Float64[Tensor, " row"]:
    """The score of each row, in float64.

    Args:
        x: rows.
        score: of `TILE_ROWS` rows.

    Raises:
        MethodError: for rows that are not finite, naming the first.
    """
    if not bool(x.isfinite().all()):
        moments.refuse_not_finite(x)
    found = x.new_zeros(len(x), dtype=torch.float64)
    for first in range(0, len(x), TILE_ROWS):
        some = x[first : first + TILE_ROWS]
        tile = x.new_zeros(TILE_ROWS, x.shape[1], dtype=torch.float64)
        tile[: len(some)] = some.double()
        found[first : first + len(some)] = score(tile)[: len(some)]
    return found


def partial(score: Float64[Tensor, " row"]) -> State:
    """Moments over some rows, about their mean, so that scores far from 0 keep the digits of their spread."""
    n = torch.tensor(len(score), dtype=torch.int64, device=score.device)
    none = score.new_zeros(())
    mean = score.mean() if len(score) else none
    largest = score.max() if len(score) else score.new_tensor(-torch.inf)
    return {"n": n, "mean": mean, "squares": (score - mean).square().sum(), "largest": largest}


def merge(a: State, b: State) -> State:
    """Of both sets of rows (Chan, Golub, LeVeque, American Statistician 37 (1983) 242)."""
    n = a["n"] + b["n"]
    share = b["n"].double() / n.clamp_min(1)
    apart = b["mean"] - a["mean"]
    return {
        "n": n,
        "mean": a["mean"] + share * apart,
        "squares": a["squares"] + b["squares"] + a["n"] * share * apart.square(),
        "largest": torch.maximum(a["largest"], b["largest"]),
    }


def summary(state: State) -> dict[str, int | float | None]:
    """Fields of a result; None without rows."""
    n = int(state["n"])
    if n == 0:
        return {"n_rows": 0, "mean": None, "spread": None, "largest": None}
    spread = (float(state["squares"]) / n) ** 0.5
    return {"n_rows": n, "mean": float(state["mean"]), "spread": spread, "largest": float(state["largest"])}

"""One score for every sample, made of the scores of its rows: tokens of a text, patches of an image.

Connect at x the rows and at `scores` a detector's stage over them. Rows of one sample are alike, so that p-values and rates of false alarms
hold for samples, not for their rows: calibrate what this gives. Arrays: `score` (row), larger for stranger samples, at the first row that a
sample has; NaN at its others and for failed samples. `first` (row): 1 where a score is; methods that read scores leave out the others.

All scores lie in memory once: 8 bytes a row.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from schemas.base import Frozen
from schemas.errors import MethodError
from tasks.methods import anomaly_scores
from tasks.methods.anomaly_scores import OUTPUTS, checked_scores, own_scores_port, rows_of
from tasks.methods.contract import Arrays, Block, Inputs, RowOutput, RowsPort, State
from tasks.numerics.pooling import pooled

VERSION = 1
KIND = "map"
READS = {"x": RowsPort(values=False), "scores": own_scores_port()}
ARRAYS = {"score": ("row",), "first": ("row",)}
REFERENCE = (
    "SubspaceAD: training-free few-shot anomaly detection via subspace modeling (2026): the score of an image is the mean of the highest "
    "share of its map"
)
SEEDS = (121,)


class Config(Frozen):
    """How rows become one number."""

    by: Literal["mean", "largest", "top"] = "top"
    """mean of all rows, the largest, or the mean of the highest share of them: of one small spot, means say little."""
    share: float = Field(default=0.01, gt=0, le=1)
    """Of a sample's rows that count with `top`, rounded up: one row at least."""


class Result(Frozen):
    """Scores of all samples."""

    n_rows: int
    """Rows that have a score, one of each sample."""
    n_pooled: int
    """Rows that they were made of."""
    mean: float | None
    spread: float | None
    """Standard deviation."""
    largest: float | None
    caveats: tuple[str, ...]


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: for scores that have been pooled already.
    """
    if inputs.made["scores"].method == anomaly_scores.POOLED:
        raise MethodError(
            "the scores are of samples already; connect the stage of the detector whose rows they are of"
        )


def outputs(inputs: Inputs, config: Config) -> dict[str, RowOutput]:
    """What the first row of every sample gets."""
    return OUTPUTS | {"first": RowOutput("uint8")}


def start(inputs: Inputs, config: Config) -> State:
    """First row, and score, of each sample that has rows.

    Raises:
        MethodError: for a score that is NaN.
    """
    over = inputs.made["scores"].over
    assert over is not None  # its port asks for it
    rows = over.block
    own = checked_scores(rows_of(inputs.made["scores"], inputs.artifacts["scores"]), rows.index)
    first = torch.ones_like(rows.sample, dtype=torch.bool)
    first[1:] = rows.sample[1:] != rows.sample[:-1]
    share = {"mean": 1.0, "largest": 0.0, "top": config.share}[config.by]
    return {"row": rows.index[first], "score": pooled(own, first, share)}


def apply(block: Block, carry: State, config: Config) -> dict[str, Tensor]:
    """The score of its sample at the first row of each."""
    found = torch.full((len(block),), torch.nan, dtype=torch.float64, device=block.index.device)
    if len(carry["row"]):
        place = torch.searchsorted(carry["row"], block.index).clamp_max(len(carry["row"]) - 1)
        is_first = carry["row"][place] == block.index
        found[is_first] = carry["score"][place[is_first]]
    return {"score": found, "first": (~found.isnan()).to(torch.uint8)}


def partial(block: Block, outputs: dict[str, Tensor], carry: State, config: Config) -> State:
    """Sums of scores, and the rows that they are of."""
    score = outputs["score"]
    rows = torch.tensor(len(score), dtype=torch.int64, device=score.device)
    return anomaly_scores.partial(score[~score.isnan()]) | {"pooled": rows}


def merge(a: State, b: State) -> State:
    """Of both sets of rows."""
    return anomaly_scores.merge(a, b) | {"pooled": a["pooled"] + b["pooled"]}


def finish(state: State, carry: State, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """A summary of the scores."""
    n, notes = int(state["pooled"]), []
    if inputs.n_rows == inputs.n_samples:
        notes.append("every sample has one row: scores are those that were given")
    return Result(n_pooled=n, caveats=tuple(notes), **anomaly_scores.summary(state)), {}

"""Alarms where the scores of a detector change along their order, with a stated time between false ones.

Connect at `scores` a detector's stage over the rows at x, in the order in which they came (captures as they are named, samples in
each), and at `calibration` a stage of the same detector, with the same options and the same reference, over other normal rows. Each score
has its p-value among the calibration's and all before it; how far these leave chance is one number, which starts again after an alarm.
While scores are exchangeable an alarm comes after `run_length` of them in expectation at the earliest, whatever the detector is.

One change is one alarm. An alarm ends a level: the next is learned from the scores after it, not from the calibration any more, and may
end upwards or downwards, so that the return to the old level is an alarm of its own, and so is a further step. A slow trend gives an
alarm for each part of it. Scores right after an alarm have little to be compared with: a change that follows at once is told late, or not.

Rows of one sample are alike: watch what `anomaly.pooled` gives, one score of each sample.

Arrays, by steps (scores in order, rows of failed samples left out): `statistic` (step), which gives an alarm at `run_length`; `normal`
(step), the score as a standard normal number by its rank so far; `sample` and `row` (step), where it is: of several captures they are
laid end to end. By alarms: `alarm` and `start` (alarm), the step that gave it and that with which the change most likely began; `up`
(alarm), 1 where scores became larger.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from schemas.alert import Alert
from schemas.base import Frozen, content_id
from tasks.methods import anomaly_calibration
from tasks.methods.anomaly_scores import scores_of, scores_port
from tasks.methods.contract import Array, Arrays, Block, Inputs, RowsPort
from tasks.numerics import change_alarms
from tasks.numerics.change_alarms import Watched

VERSION = 2
KIND = "whole"
READS = {
    "x": RowsPort(values=False),
    "scores": scores_port(aligned=True),
    "calibration": scores_port(aligned=False),
}
ARRAYS = dict.fromkeys(("statistic", "normal", "sample", "row"), ("step",)) | dict.fromkeys(
    ("alarm", "start", "up"), ("alarm",)
)
REFERENCE = (
    "Vovk, Testing randomness online, Statistical Science 36 (2021) 595: p-values of exchangeable scores as they come, and "
    "Shiryaev-Roberts statistics of them. Roberts, Technometrics 8 (1966) 411; Pollak, Annals of Statistics 15 (1987) 749: mixtures over "
    "sizes of a shift. Shin, Ramdas, Rinaldo, E-detectors, arXiv 2203.03532 (2022): the expected time to a false alarm"
)
SEEDS = ()
MOST_ROWS = 4_000_000
FEW = 100
"""Calibration scores below which shifts are said to be found late."""
CONTEXT = 64
"""Scores up to an alarm's that tell it from others, wherever they lie."""
DEPENDENT = 4.0
"""Standard errors of a correlation of neighbours that are told."""


class Config(Frozen):
    """How often false alarms may come."""

    run_length: float = Field(default=100_000, ge=2)
    """Scores that go by in expectation, at least, until an alarm while nothing changes; a larger one finds changes later, in proportion to
    its logarithm."""
    direction: Literal["up", "both"] = "up"
    """Which change of the first level is one: to larger scores, stranger rows, or to smaller ones as well. Later levels may end in both."""
    seed: int = Field(default=0, ge=0)
    """Of the numbers that break ties of ranks."""


class Result(Frozen):
    """Changes that were told; where they are is in the arrays."""

    detector: str
    """That gave the scores, larger for stranger rows."""
    n_scores: int
    """Rows that have one; of `anomaly.pooled` samples."""
    n_calibration: int
    n_alarms: int
    run_length: float
    """Expected scores until a false alarm, at least. How late a true change is told is not known without knowing when it was."""
    expected_false: float
    """At most so many alarms are expected among these scores where nothing changes: scores / `run_length`."""
    first_alarm: int | None
    """Sample of the first, over all captures laid end to end."""
    first_start: int | None
    """Sample with which that change most likely began."""
    last_statistic: float
    """How far the next alarm is at the end; it comes at `run_length`."""
    neighbours: float | None
    """Correlation of neighbouring scores inside levels: 0 where order says nothing, as the run length asks for. None for less than
    three."""
    alerts: tuple[Alert, ...]
    """One for each alarm, told once however many scores follow."""
    caveats: tuple[str, ...]


def max_rows(config: Config) -> int:
    """Scores that are ranked in memory."""
    return MOST_ROWS


def check(inputs: Inputs, config: Config) -> None:
    """Refuse before reading.

    Raises:
        MethodError: if the calibration is of another detector, of other options, of another reference or at another site; if it has no
            rows.
    """
    anomaly_calibration.check(inputs)


class _Stream(NamedTuple):
    """int64 [step] each: where scores are."""

    sample: Tensor
    row: Tensor


def solve(block: Block, inputs: Inputs, config: Config) -> tuple[Result, Arrays]:
    """Watch the scores in order.

    Raises:
        MethodError: for a score that is NaN.

    Cost: see `change_alarms.watched`; the numbers that break ties depend on the seed and the row alone.
    """
    score, known = scores_of(block), anomaly_calibration.scored(inputs).score
    there = ~score.isnan()  # others are of samples that have one
    stream = _Stream(block.sample[there].cpu(), block.index[there].cpu())
    uniform = _uniform(stream.row, config.seed)
    found = change_alarms.watched(score[there], known, uniform, config.run_length, config.direction == "both")
    alerts = _alerts(found, stream, score[there].cpu(), config)
    return _result(found, stream, len(known), inputs, config, alerts), _arrays(found, stream)


def _uniform(row: Tensor, seed: int) -> Tensor:
    """float64 [step]"""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    drawn = generator.random(int(row.max()) + 1 if len(row) else 0)
    return torch.from_numpy(drawn)[row]


def _result(
    found: Watched,
    stream: _Stream,
    calibration: int,
    inputs: Inputs,
    config: Config,
    alerts: tuple[Alert, ...],
) -> Result:
    n, alarms = len(stream.row), found.alarms
    last = float(found.statistic[-1]) if n else 0.0
    beside = change_alarms.neighbours(found)
    return Result(
        detector=inputs.made["scores"].method,
        n_scores=n,
        n_calibration=calibration,
        n_alarms=len(alarms),
        run_length=config.run_length,
        expected_false=n / config.run_length,
        first_alarm=int(stream.sample[alarms[0].at]) if alarms else None,
        first_start=int(stream.sample[alarms[0].start]) if alarms else None,
        last_statistic=0.0 if alarms and alarms[-1].at == n - 1 else last,
        neighbours=beside,
        alerts=alerts,
        caveats=_caveats(inputs, n, calibration, beside),
    )


def _alerts(found: Watched, stream: _Stream, score: Tensor, config: Config) -> tuple[Alert, ...]:
    """By the scores up to that with which a change was told: what follows moves no alarm, and what goes far before it moves no score."""
    told = []
    for alarm in found.alarms:
        at, start = int(stream.sample[alarm.at]), int(stream.sample[alarm.start])
        message = f"scores became {'larger' if alarm.up else 'smaller'}: told at sample {at}, most likely from sample {start} on"
        value, before = float(found.statistic[alarm.at]), score[max(0, alarm.at + 1 - CONTEXT) : alarm.at + 1]
        key = content_id([bool(alarm.up), *(one.hex() for one in before.tolist())])
        told.append(Alert(kind="change", message=message, value=value, threshold=config.run_length, key=key))
    return tuple(told)


def _caveats(inputs: Inputs, n: int, calibration: int, beside: float | None) -> tuple[str, ...]:
    notes = [
        "the run length holds for scores in exchangeable order; how late a true change is told is not known here"
    ]
    if not n:
        notes.append("there are no scores: nothing was watched")
    if calibration < FEW:
        notes.append(
            f"{calibration} calibration scores tell little of the first level: {FEW} or more find changes sooner"
        )
    if alike := anomaly_calibration.rows_alike(inputs):
        notes.append(
            f"{alike}: rows of one sample are alike, so that false alarms come more often than `run_length` says; make one score "
            "of each sample with anomaly.pooled"
        )
    if beside is not None and beside > DEPENDENT / n**0.5:
        notes.append(
            f"neighbouring scores are correlated by {beside:.2f} inside levels: order matters, and false alarms come more often than "
            "`run_length` says; watch scores that are further apart, or shuffle what has no order"
        )
    return (*notes, *anomaly_calibration.not_others(inputs, "`run_length` says"))


def _arrays(found: Watched, stream: _Stream) -> Arrays:
    alarms = torch.tensor(found.alarms, dtype=torch.int64).reshape(-1, 3)
    values = (found.statistic, found.normal, stream.sample, stream.row)
    arrays = dict(zip(ARRAYS, (*values, *alarms.T.contiguous()), strict=True))
    return {name: Array(values.contiguous(), ARRAYS[name]) for name, values in arrays.items()}
